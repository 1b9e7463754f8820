"""One linear file per job: the only place that wires data, model, training and evaluation together."""

"""The viewer: a small server on the loopback interface and its page, to click lesions and see their masks."""

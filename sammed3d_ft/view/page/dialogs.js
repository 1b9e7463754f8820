// Help, questions, and the choice for a click that may belong to another lesion. Text is always set as text.

const element = (name, text, parent) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
};
export { element };

const MOUSE = ["Mouse and touch pad", [
  ["Click", "mark the lesion (in a plane), or jump there (in the projection)"],
  ["Shift click, right click", "mark the background"],
  ["Alt click", "only move the crosshair"],
  ["Wheel, two fingers", "change the slice; turn the projection"],
  ["Ctrl wheel, pinch", "zoom"],
  ["Drag", "move the image; turn the projection"],
]];

// sections: [[title, [[keys, what], ...]], ...]
export function showHelp(sections) {
  const dialog = document.getElementById("help");
  dialog.replaceChildren();
  element("h2", "Click a lesion, see its mask", dialog);
  element("p", "The first click segments a lesion. Further clicks correct it: click on a missing part, or mark as "
    + "background a part that does not belong to it. New lesion (E) starts the next. Clicks are saved automatically; Save "
    + "writes mask, lesion table and figure. Research software, not for clinical use.", dialog);
  const grid = element("div", undefined, dialog);
  grid.className = "keys";
  for (const [title, entries] of [MOUSE, ...sections]) {
    const part = element("section", undefined, grid), list = document.createElement("dl");
    element("h3", title, part);
    part.append(list);
    for (const [keys, what] of entries) {
      element("kbd", keys, element("dt", undefined, list));
      element("dd", what, list);
    }
  }
  const close = element("button", "Close (Esc)", element("footer", undefined, dialog));
  close.className = "main";
  close.onclick = () => dialog.close();
  dialog.showModal();
}

// Resolves to whether the answer was yes.
export function question(text, yes, no) {
  const dialog = document.getElementById("question");
  dialog.replaceChildren();
  element("p", text, dialog);
  const row = element("footer", undefined, dialog);
  const answer = new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "yes");
  });
  dialog.returnValue = "";
  element("button", no, row).onclick = () => dialog.close();
  const agree = element("button", yes, row);
  agree.className = "main";
  agree.onclick = () => dialog.close("yes");
  dialog.showModal();
  agree.focus();
  return answer;
}

let withdraw = null;

// Buttons [[label, value], ...]; the first is chosen by Enter, Esc gives null.
export function offer(text, choices) {
  withdraw?.(null);
  const bar = document.getElementById("offer");
  bar.replaceChildren();
  element("span", text, bar);
  bar.hidden = false;
  return new Promise((resolve) => {
    withdraw = (value) => {
      withdraw = null;
      bar.hidden = true;
      resolve(value);
    };
    for (const [label, value] of choices) element("button", label, bar).onclick = () => withdraw?.(value);
    bar.querySelector("button").className = "main";
    bar.querySelector("button").focus();
  });
}

export const offering = () => withdraw !== null;
export const withdrawOffer = () => withdraw?.(null);

export function fail(title, text, way) {
  const box = document.getElementById("failure");
  box.querySelector("h1").textContent = title;
  const [what, then] = box.querySelectorAll("p");
  what.textContent = text;
  then.textContent = way;
  box.hidden = false;
}

// The keyboard: one listener, whose keys the shown page chooses, and a page of help.

const KEYS = [
  ["?", "this help"],
  ["o, e", "overview, examples"],
  ["j k or → ←", "next and previous example (in the gallery: card)"],
  ["/", "search, in the gallery"],
  ["Enter", "open a card; hold a phrase"],
  ["↓ ↑ or 1 to 9", "hold the next, the previous, or that phrase"],
  ["] [", "one layer up, down"],
  [". ,", "next and previous head"],
  ["m", "another map: boxes, model, attention, relevance, probe"],
  ["Esc", "let go of the phrase; close this help"],
];

/** Listen to keys as long as the report is shown; returns what ends that. */
function listenToKeys(app) {
  const help = helpDialog();
  app.element.append(help);
  function listen(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest?.("input, select, textarea");
    if (help.open || (typing && event.key !== "Escape")) return;
    const inPage = { "?": () => help.showModal(), o: () => app.go({ page: "overview", params: {} }), e: () => app.go({ page: "gallery", params: {} }) };
    if (inPage[event.key]) inPage[event.key]();
    else if (!app.keys?.(event)) return;
    event.preventDefault();
  }
  const place = app.whole ? document : app.element;
  place.addEventListener("keydown", listen);
  app.help = () => help.showModal();
  return () => place.removeEventListener("keydown", listen);
}

function helpDialog() {
  const dialog = h("dialog", { class: "help", "aria-labelledby": "probe-report-help" },
    h("h2", { id: "probe-report-help" }, "Keys"),
    h("dl", null, KEYS.map(([keys, words]) => [h("dt", null, h("kbd", null, keys)), h("dd", null, words)])),
    h("form", { method: "dialog" }, h("button", { class: "button primary" }, "Close")));
  return dialog;
}

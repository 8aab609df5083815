// The gallery: examples as cards, chosen by filters that stand in the address.

const PAGE = 30; // cards at once

/** The gallery page. */
function galleryPage(app, route) {
  const { index } = app;
  let params = route.params;
  const cards = h("ol", { class: "cards" }), status = h("p", { class: "status", role: "status" });
  const pagers = [h("div", { class: "pager" }), h("div", { class: "pager" })];
  const form = h("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() });

  function set(change) {
    params = { ...params, page: undefined, ...change };
    app.note({ page: "gallery", params });
    draw();
  }
  function draw() {
    const found = chosen(index, params), pages = Math.max(1, Math.ceil(found.length / PAGE));
    const page = Math.min(Math.max(Number(params.page) || 1, 1), pages), begin = (page - 1) * PAGE;
    const shown = found.slice(begin, begin + PAGE);
    const range = pages > 1 ? `; ${begin + 1} to ${begin + shown.length} here` : "";
    refill(status, `${found.length.toLocaleString("en")} of ${counted(index.table.id.length, "example")}${range}`);
    refill(cards, shown.map((example) => card(app, example, params)));
    for (const pager of pagers) refill(pager, pages > 1 && pageLinks(page, pages, (to) => turn(to)));
    app.selected(found.map((example) => index.table.id[example]));
  }
  function turn(to) {
    set({ page: to === 1 ? undefined : String(to) });
    status.scrollIntoView({ block: "start" });
  }
  function of(run) {
    app.go({ page: "gallery", params: { ...params, of: run, page: undefined } });
  }
  function fill() {
    refill(form, ...filterFields(app, params, set, of), h("button", { type: "button", class: "quiet", onclick: clear }, "Clear filters"));
  }
  function clear() {
    params = { of: params.of };
    fill();
    set({});
  }
  app.keys = (event) => galleryKey(event, cards, form);
  fill();
  draw();
  return h("div", { class: "page gallery" },
    h("h1", { tabindex: "-1" }, "Examples"), h("details", { class: "filter-box", open: app.wide }, h("summary", null, "Filters and order"), form),
    status, pagers[0], cards, pagers[1]);
}

function filterFields(app, params, set, of) {
  const { index } = app, run = runNumber(index, params.of), tally = tallied(index, run);
  const quadrants = Object.entries(QUADRANTS).map(([key, words]) => [key, `${capital(words)} (${tally[key] || 0})`]);
  const types = index.types.map((type, number) => [type, `${type || "no type"} (${tally[number] || 0})`]);
  types.sort((one, other) => one[0].localeCompare(other[0]));
  const two = index.runs.length > 1, names = index.runs.map((each, number) => [String(number), each.name]);
  const search = h("input", { type: "search", name: "q", placeholder: "caption, id", autocomplete: "off", dir: "auto", oninput: () => set({ q: search.value }) });
  search.value = params.q || "";
  return [
    params.ids && h("p", { class: "note" }, "Of examples that were chosen by their ids."),
    field("Search", search),
    two && field("Outcome of", choice(names, String(run), of, { "data-key": "of" })),
    field("Task and grounding", choice([["", "all"], ["right", "Task right"], ["wrong", "Task wrong"], ...quadrants], params.quadrant || "", (quadrant) => set({ quadrant }))),
    two && field(`From ${index.runs[0].name} to ${index.runs[1].name}`, choice(
      [["", "all"], ["gained", "gained: wrong, then right"], ["lost", "lost: right, then wrong"], ["same", "no change"]], params.change || "", (change) => set({ change }))),
    field("Phrase type", choice([["", "all"], ...types], params.type || "", (type) => set({ type }))),
    rangeField("Phrases", "phrases", params, set, 1), rangeField("Task score", "score", params, set, "any"),
    rangeField(`Grounding (${index.runs[run].measure})`, "grounding", params, set, "any"),
    field("Order", choice(Object.entries(SORTS).filter(([key]) => two || !key.includes("change")), params.sort || "", (sort) => set({ sort }))),
  ];
}

/** How many examples there are of each quadrant in a run, and of each phrase type (by its number). */
function tallied(index, run) {
  if (index.tallies[run]) return index.tallies[run];
  const tally = (index.tallies[run] = {});
  const count = (key) => (tally[key] = (tally[key] || 0) + 1);
  index.table.types.forEach((types, example) => {
    count(quadrantOf(index, run, example));
    new Set(types).forEach(count);
  });
  return tally;
}

/** Two numbers, either of which may stay empty. */
function rangeField(label, name, params, set, step) {
  const [low, high] = rangeOf(params[name]);
  const inputs = [[low, "from"], [high, "to"]].map(([value, words]) => {
    const input = h("input", { type: "number", step, placeholder: words, "aria-label": `${label}, ${words}`, oninput: () => set({ [name]: text() }) });
    input.value = Number.isFinite(value) ? value : "";
    return input;
  });
  const text = () => (inputs.some((input) => input.value) ? inputs.map((input) => input.value).join("..") : undefined);
  return h("div", { class: "field", role: "group", "aria-label": label }, h("span", { class: "field-name" }, label), h("span", { class: "range" }, inputs));
}

function pageLinks(page, pages, turn) {
  const button = (to, words) => h("button", { type: "button", disabled: to < 1 || to > pages, onclick: () => turn(to) }, words);
  return [button(page - 1, "← Earlier"), h("span", null, `Page ${page} of ${pages}`), button(page + 1, "Later →")];
}

/** One example in the gallery. */
function card(app, example, params) {
  const { index } = app, { table } = index, run = runNumber(index, params.of), outcome = index.outcomes[run];
  const correct = outcome.correct[example];
  const state = correct === null ? null : correct ? "right" : "wrong";
  const target = thumbnail(app, table.thumb[example], correct === null ? "image" : "target");
  const answer = outcome.answer[example] && thumbnail(app, outcome.answer[example], "the model’s answer", "mistaken");
  return h("li", null, link(app, { page: "example", id: table.id[example], params: { ...chosenBy(params) } }, { class: `card ${state || ""}`, "data-example": table.id[example] },
    h("span", { class: "thumbs" }, target, answer),
    h("span", { class: "card-text", dir: "auto" }, colouredCaption(index, table.caption[example], table.spans[example])),
    h("span", { class: "card-facts" },
      index.runs.map((about, place) => result(about, index.outcomes[place], example, index.runs.length > 1)),
      h("span", { class: "card-id", title: table.id[example] }, h("bdi", null, table.id[example])))));
}

/** Task and grounding of an example in one run. named: whether the run's name is needed. */
function result(run, { correct, grounding }, example, named) {
  const right = correct[example], level = grounding[example], state = right ? "right" : "wrong";
  return h("span", { class: "result" },
    right !== null && h("span", { class: `tag ${state}` }, right ? "✓ right" : "✗ wrong"),
    level !== null && h("span", { class: "grounding", title: run.measure, style: { "--level": `${100 * level}%` } },
      h("span", { class: "unseen" }, run.measure), ` ${number(level)}`),
    named && h("bdi", { class: "of" }, run.name));
}

function thumbnail(app, thumb, words, kind = "") {
  if (!thumb) return h("span", { class: "thumb placeholder" }, "no image");
  const [name, width, height] = thumb;
  return picture(app, `images/${name}`, { class: `thumb ${kind}`, alt: words, width, height, loading: "lazy" });
}

/** Keys of the gallery: from card to card, and to the search. */
function galleryKey(event, cards, form) {
  if (event.key === "/") {
    form.closest("details").open = true;
    form.querySelector("input").focus();
    return true;
  }
  const by = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 }[event.key];
  if (!by) return false;
  const links = [...cards.querySelectorAll("a.card")], at = links.indexOf(document.activeElement);
  links[at < 0 ? 0 : Math.min(Math.max(at + by, 0), links.length - 1)]?.focus();
  return true;
}

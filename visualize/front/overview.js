// The overview: what the report is of, outcomes counted, summaries and figures.

/** The first page. */
function overviewPage(app) {
  const { index } = app;
  return h("div", { class: "page overview" },
    h("h1", { tabindex: "-1", dir: "auto" }, index.title),
    h("p", { class: "lead" }, lead(index)),
    index.missing > 0 && h("p", { class: "note" }, `${counted(index.missing, "image")} cannot be shown; the places say why.`),
    h("p", null, link(app, { page: "gallery", params: {} }, { class: "button primary" }, "Look at the examples")),
    outcomes(app),
    index.runs.length > 1 && changes(app),
    index.words.map((words) => summarySection(app, words, true)),
    index.runs.map((run) => runSection(app, run)));
}

function lead(index) {
  const [run] = index.runs, where = [run.benchmark, run.split && `split ${run.split}`].filter(Boolean).join(", ");
  const of = index.runs.map((each) => each.checkpoint || each.name).join(" and ");
  return `${counted(index.table.id.length, "example")}${where ? ` of ${where}` : ""}, as ${of} answered ${index.table.id.length === 1 ? "it" : "them"}.`;
}

/** Examples by task and grounding, each count a way into the gallery. */
function outcomes(app) {
  const { index } = app, examples = index.table.id.map((_, example) => example);
  const rows = index.runs.map((run, number) => {
    const { correct, grounding } = index.outcomes[number];
    const answered = examples.filter((example) => correct[example] !== null);
    const cell = (quadrant, found, all) => link(app, { page: "gallery", params: { quadrant, of: number ? String(number) : undefined } }, null, share(found, all));
    const known = examples.filter((example) => quadrantOf(index, number, example));
    return [h("bdi", null, run.name), answered.length ? cell("right", answered.filter((example) => correct[example]).length, answered.length) : "no task",
      ...Object.keys(QUADRANTS).map((key) => (known.length ? cell(key, known.filter((example) => quadrantOf(index, number, example) === key).length, known.length) : "–")),
      grounding.some((value) => value !== null) ? run.measure : "unknown"];
  });
  return h("section", null, h("h2", null, "Task and grounding"),
    table(["Run", "Task right", ...Object.values(QUADRANTS).map(capital), "Grounding is"], rows),
    h("p", { class: "note" }, `Counts of examples; one is grounded from ${index.runs[0].measure} ${index.runs[0].groundedAt} on: how well the places that the model gives to its phrases fit the true ones. Each count leads to those examples.`));
}

/** What becomes of examples from the first run to the second. */
function changes(app) {
  const { index } = app, names = index.runs.map((run) => run.name), counts = { gained: 0, lost: 0, same: 0 };
  let all = 0;
  index.table.id.forEach((_, example) => {
    const change = changeOf(index, example);
    if (change) counts[change] += 1, (all += 1);
  });
  if (!all) return null;
  const entry = (change, words) => h("li", null, link(app, { page: "gallery", params: { change } }, null, share(counts[change], all)), ` ${words}`);
  return h("section", null, h("h2", null, "Compared"), h("ul", null,
    entry("gained", `wrong in ${names[0]}, right in ${names[1]}`), entry("lost", `right in ${names[0]}, wrong in ${names[1]}`), entry("same", "with the same outcome in both"),
    h("li", null, link(app, { page: "gallery", params: { sort: "-change" } }, null, "Most gained in grounding"), ", ",
      link(app, { page: "gallery", params: { sort: "change" } }, null, "most lost"))));
}

function runSection(app, run) {
  const facts = [["Checkpoint", run.checkpoint], ["Model", run.model], ["Layers", run.sites.join(", ")], ["Run", run.identity]].filter(([, value]) => value);
  return h("section", { class: "run" }, h("h2", { dir: "auto" }, run.name),
    h("dl", { class: "about" }, facts.map(([name, value]) => [h("dt", null, name), h("dd", null, value)])),
    run.figures.length > 0 && h("div", { class: "figures" }, run.figures.map((figure) => chart(app, figure))),
    run.words.map((words, place) => summarySection(app, words, place === 0)),
    (run.notes.length > 0 || run.leftOut.length > 0) && h("details", { open: true }, h("summary", null, "What is not here"),
      h("ul", null, [...run.notes, ...run.leftOut.map((line) => `Left out: ${line}`)].map((note) => h("li", null, note)))));
}

function summarySection(app, words, open) {
  return h("details", { class: "words", open }, h("summary", null, words.title), summary(words.blocks, 3),
    words.figures.length > 0 && h("div", { class: "figures" }, words.figures.map((figure) => chart(app, figure))));
}

/** A figure on white paper, with its words. */
function chart(app, { src, title, caption, alternative, width, height }) {
  return h("figure", { class: width > 1.45 * height && width > 760 ? "chart wide" : "chart" },
    h("figcaption", null, h("h3", null, title), caption && h("p", null, caption)),
    h("div", { class: "paper", tabindex: "0", role: "group", "aria-label": title }, picture(app, `figures/${src}`, { alt: alternative, width, height, loading: "lazy" })));
}

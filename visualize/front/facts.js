// Why did it fail? What is known of an example and its phrases, in words and in a table.

/** How the task ended, in a sentence. */
function verdict(record, run) {
  const { answer, correct, score } = record.runs[run];
  if (correct === null) return "No task is answered here: only the phrases are looked at.";
  if (answer === null) return "Task wrong: there is no answer.";
  if (Array.isArray(record.target)) {
    const [across, down] = answer.map((place, axis) => Math.round(100 * Math.abs(place - record.target[axis])));
    return `Task ${correct ? "right" : "wrong"}: the answer (✕) lies ${across} % of the width and ${down} % of the height from the target (○); ${worth(score)}.`;
  }
  if (correct) return `Task right: it chose ${candidate(answer)}, the target; ${worth(score)}.`;
  return `Task wrong: the target is ${candidate(record.target)}, it chose ${candidate(answer)}; ${worth(score)}.`;
}

/** The task's score, with what it says. */
function worth(score) {
  return `score ${scored(score)} (how well its answer fits the target: higher is better)`;
}

/**
 * Whether a run shows where a phrase is; null where that is unknown. Boxes have to overlap the truth by half. The IoU of a
 * whole heatmap seldom gets there: its strongest point has to lie inside.
 */
function shows(about, found) {
  const value = about.heatmaps ? found.pointing : found.iou;
  return value === null ? null : about.heatmaps ? value > 0 : value >= 0.5;
}

/** Which phrases are found, in a sentence or two; null where nothing is known of them. */
function foundPhrases(about, record, run) {
  const { phrases, correct, leftOut } = record.runs[run];
  const beyond = leftOut ? ` ${counted(leftOut, "phrase")} ${leftOut === 1 ? "lies" : "lie"} beyond its token limit.` : "";
  const known = record.phrases.map((phrase, place) => ({ phrase, of: phrases[place] })).filter(({ of }) => of && shows(about, of) !== null);
  if (!known.length) return beyond.trim() || null;
  const lost = known.filter(({ of }) => !shows(about, of)), all = `${counted(known.length, "phrase")}${leftOut ? " that it reads" : ""}`;
  const how = about.heatmaps ? "(strongest point inside the region)" : "(IoU of at least 0.5)";
  const one = leftOut ? "the one phrase that it reads" : "its phrase";
  if (!lost.length) return `It finds ${known.length === 1 ? one : `all ${leftOut ? "the" : "its"} ${all}`} ${how}${correct === false ? ": grounding is not what failed here." : "."}${beyond}`;
  const elsewhere = lost.filter(({ phrase, of }) => of.predicted && of.predicted.image !== phrase.image);
  const images = [...new Set(elsewhere.map(({ of }) => candidate(of.predicted.image)))];
  const names = lost.slice(0, 3).map(({ phrase }) => `“${phrase.text}”`).join(", ") + (lost.length > 3 ? ", …" : "");
  const which = elsewhere.length < lost.length ? `${elsewhere.length} of them` : lost.length === 1 ? "it" : "them";
  const where = images.length ? ` It puts ${which} in another image: ${images.join(", ")}.` : "";
  const none = lost.length === known.length, end = none && correct ? " It is right without showing where." : "";
  const some = none ? "" : `, not ${names}`, said = known.length === 1 ? `does not find ${one}` : `finds ${none ? "none" : known.length - lost.length} of ${leftOut ? "the" : "its"} ${all}`;
  return `It ${said} ${how}${some}.${where}${end}${beyond}`;
}

/** Where the model puts a phrase and what its probes know, in sentences. */
function explained(app, record, run, place) {
  const phrase = record.phrases[place], found = record.runs[run].phrases[place];
  if (!found) return ["This run leaves the phrase out: its words lie beyond the model’s token limit."];
  const sentences = [...placed(app.index.runs[run], record, phrase, found), ...probed(app.index.runs[run], record, run, place)];
  return sentences.length ? sentences : ["Nothing is known of where the model puts it."];
}

function placed(run, record, phrase, found) {
  const sentences = [], many = record.images.length > 1, { predicted, pointing, iou } = found;
  if (predicted && many) {
    const there = predicted.image === phrase.image;
    sentences.push(there
      ? `The model puts it in the right image (${candidate(predicted.image)}).`
      : `The model puts it in ${candidate(predicted.image)}; it is in ${candidate(phrase.image)}.`);
  }
  if (pointing !== null) sentences.push(`${run.heatmaps ? "Its strongest point" : "The middle of its box"} is ${pointing > 0 ? "inside" : "outside"} the true region.`);
  if (iou !== null) sentences.push(`Overlap ${run.heatmaps ? "of its whole heatmap " : ""}with the truth (IoU) ${number(iou)}${iou >= 0.5 ? "" : ", below 0.5"}.`);
  return sentences;
}

/**
 * At how many layers each probe finds the phrase, and at how many of them none of its controls does: these know no phrase, or
 * not what goes with what, so that only the others tell of the model.
 */
function probed(run, record, number, phrase) {
  const found = record.runs[number].phrases[phrase], many = record.images.length > 1;
  const elsewhere = many && found.predicted && found.predicted.image !== record.phrases[phrase].image;
  const seen = record.runs[number].part === "validation" ? " The probe was tuned with this image." : "";
  return run.series.flatMap((series, place) => {
    const values = found.probes[place];
    if (!values || CONTROLS.includes(series.probe)) return [];
    const known = values.filter((value) => value !== null), right = series.sites.filter((_, layer) => values[layer] >= 0.5);
    const controls = run.series.map((other, number) => [other, found.probes[number]])
      .filter(([other, theirs]) => theirs && other.question === series.question && CONTROLS.includes(other.probe));
    const alone = right.filter((site) => !controls.some(([other, theirs]) => theirs[other.sites.indexOf(site)] >= 0.5));
    const last = right.length && right.length < known.length ? `, last at ${right[right.length - 1]}` : "";
    const within = many && series.question === "alignment"; // its candidates lie in the phrase's image alone
    let told = `The ${series.probe} probe (${series.question}${within ? ", among regions of its own image" : ""}) finds it at ${right.length} of ${known.length} layers${last}`;
    if (right.length && controls.length) {
      const names = controls.map(([other]) => other.probe).join(", ");
      told += alone.length === right.length ? `, where no control (${names}) does` : alone.length
        ? `; at ${right.length - alone.length} of them a control (${names}) does too` : `; so does a control (${names}) at each of them: it tells nothing of the model`;
    }
    const hidden = alone.length > known.length / 2 && shows(run, found) === false && !(within && elsewhere);
    return [`${told}${hidden ? ": it can be read inside, though the model does not show it" : ""}.${seen}`];
  });
}

/** Probes that a question's own are held against. */
const CONTROLS = ["concatenation", "phrase-only", "region-only", "majority"];

/** The facts of one run's answer: {element, show(phrase, layer)}. onphrase: as for marks of the caption. */
function factsOf(app, record, run, marks, onlayer) {
  const found = record.runs[run], about = app.index.runs[run];
  const state = found.correct === null ? "" : found.correct ? "right" : "wrong";
  const rows = record.phrases.map((phrase, place) => factRow(app, record, run, place, marks));
  const words = h("div", { class: "why", "aria-live": "polite" });
  const layers = h("div", { class: "layers" });
  const element = h("section", { class: "facts", "aria-label": `Facts of ${about.name}` },
    h("div", { class: `verdict ${state}` }, [verdict(record, run), foundPhrases(about, record, run)].filter(Boolean).map((words) => h("p", null, words))),
    record.phrases.length > 0 && h("div", { class: "scroll phrases", tabindex: "0", role: "group", "aria-label": "Phrases and how well they are grounded" },
      h("table", null,
        h("thead", null, h("tr", null, ["Phrase", "IoU", "Points at it", record.images.length > 1 && "Image"].filter(Boolean).map((cell) => h("th", { scope: "col" }, cell)))),
        h("tbody", null, rows))),
    record.phrases.length === 0 && h("p", { class: "note" }, "This example has no phrases."),
    words, layers);
  function show(phrase, layer) {
    const focused = layers.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
    rows.forEach((row, place) => row.classList.toggle("active", place === phrase));
    if (phrase === null) {
      refill(words, record.phrases.length > 0 && h("p", { class: "note" }, "Choose a phrase, by pointing at it, with the tab key or by its number, to see why."));
      refill(layers);
      return;
    }
    refill(words, h("p", { class: "chosen" }, h("bdi", null, `“${record.phrases[phrase].text}”`)),
      h("ul", null, explained(app, record, run, phrase).map((sentence) => h("li", null, sentence))));
    refill(layers, probeLayers(about, found, found.phrases[phrase], layer, onlayer));
    if (focused) layers.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }
  return { element, show };
}

function factRow(app, record, run, place, marks) {
  const phrase = record.phrases[place], found = record.runs[run].phrases[place];
  const image = found?.predicted ? found.predicted.image : null, there = image === phrase.image;
  const points = !found || found.pointing === null ? "–" : found.pointing > 0 ? "✓ yes" : "✗ no";
  const where = image === null ? "–" : `${there ? "✓" : "✗"} ${image}`;
  const button = h("button", { type: "button", class: "phrase-name", dir: "auto", ...marks(place) },
    h("span", { class: "swatch", style: { "--phrase": phraseColour(app.index, place) }, "aria-hidden": "true" }), phrase.text,
    record.phrases.length > app.index.phraseColours.length && h("sup", null, place + 1));
  const level = found && found.iou !== null ? { "--level": `${100 * found.iou}%` } : null;
  return h("tr", null, h("th", { scope: "row" }, button),
    h("td", { class: level ? "level" : null, style: level }, found ? number(found.iou) : "left out"), h("td", null, points), record.images.length > 1 && h("td", null, where));
}

/** Why no probe was asked about a phrase. */
function notAsked({ part }) {
  return part === "train" || part === null ? "it was in the part that probes learn from" : "it is annotated with no region, or with all of them";
}

/** What probes find of a phrase, a cell a layer; a click goes to that layer. */
function probeLayers(run, about, found, layer, onlayer) {
  if (!run.series.length) return null;
  const asked = run.series.map((series, place) => [series, found?.probes[place], place]).filter(([, values]) => values);
  if (!asked.length) return h("p", { class: "note" }, `No probe was asked about this phrase: ${notAsked(about)}.`);
  const sites = layersOf(run, "probe");
  const rows = asked.map(([series, values, place]) => h("tr", { class: CONTROLS.includes(series.probe) ? "control" : null },
    h("th", { scope: "row" }, run.series.some((other) => other.question !== series.question) ? `${series.probe}, ${series.question}` : series.probe),
    sites.map((site) => probeCell(series, values[series.sites.indexOf(site)], found.ious[place]?.[series.sites.indexOf(site)], site, site === layer))));
  const numbers = sites.map((site, place) => h("th", { scope: "col", class: site === layer ? "current" : null },
    h("button", { type: "button", "data-key": `layer ${site}`, title: site, "aria-label": `Layer ${site}`, onclick: () => onlayer(site) }, place)));
  return h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Probes by layer" },
    h("table", { class: "probe-layers" },
      h("caption", null, `Does a probe find it? By layer: 0 is ${sites[0]}, ${sites.length - 1} is ${sites[sites.length - 1]}`),
      h("thead", null, h("tr", null, h("td", null), numbers)), h("tbody", null, rows)));
}

/** A cell of a probe at a layer. value: whether it finds the phrase; iou: of what it finds, where that is known, which is then drawn. */
function probeCell(series, value, iou, site, current) {
  const known = value !== null && value !== undefined, level = iou ?? value;
  const found = value >= 0.5 ? "found" : value > 0 && iou === undefined ? `not found (${number(value)})` : "not found";
  const words = !known ? "not asked" : iou === undefined || iou === null ? found : `${found}, IoU ${number(iou)}`;
  return h("td", {
    class: `cell${current ? " current" : ""}${known ? "" : " unknown"}`, title: `${series.probe} at ${site}: ${words}`,
    style: known ? { "--level": `${Math.round(100 * level)}%` } : null,
  }, h("span", { class: "unseen" }, words));
}

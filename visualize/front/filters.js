// Which examples the gallery shows, and in what order; routes, which hold that choice, as text.

const SORTS = {
  "": "order of the run",
  "-grounding": "best grounded first",
  grounding: "worst grounded first",
  "-score": "highest task score first",
  score: "lowest task score first",
  "-phrases": "most phrases first",
  "-change": "most gained between the runs",
  change: "most lost between the runs",
};

/** A route as text: {page, id, params}. */
function formatRoute({ page, id, params }) {
  const kept = Object.entries(params || {}).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const query = new URLSearchParams(kept).toString();
  return `/${page}${id === undefined ? "" : `/${encodeURIComponent(id)}`}${query ? `?${query}` : ""}`;
}

/** The route that a text means; the overview for one that means nothing. */
function parseRoute(text) {
  const [path, query] = text.replace(/^#/, "").split("?");
  const [, page, ...rest] = path.split("/"), id = rest.join("/"); // typed ids may hold bare slashes
  const params = Object.fromEntries(new URLSearchParams(query || ""));
  if (page === "gallery") return { page, params };
  if (page === "example" && id) {
    try {
      return { page, id: decodeURIComponent(id), params };
    } catch {
      return { page: "overview", params: {} }; // a percent sign that encodes nothing
    }
  }
  return { page: "overview", params: {} };
}

/** The parameters that choose examples, without those of one example's view. */
function chosenBy({ ids, q, quadrant, change, type, phrases, score, grounding, sort, of }) {
  return { ids, q, quadrant, change, type, phrases, score, grounding, sort, of };
}

/** Numbers of the examples with these ids (a JSON list) in that order, without ids that are unknown; all without a list. */
function listed(index, ids) {
  if (!ids) return index.table.id.keys();
  try {
    return JSON.parse(ids).map((id) => index.places.get(id)).filter((example) => example !== undefined);
  } catch {
    return [];
  }
}

/** The number of a run in a parameter; 0 where there is no such run. */
function runNumber(index, text) {
  const number = Number(text || 0);
  return index.runs[number] ? number : 0;
}

/** An example's quadrant in a run, or null where answer or grounding are unknown. */
function quadrantOf(index, run, example) {
  const { correct, score, grounding } = index.outcomes[run];
  if (score[example] === null || grounding[example] === null) return null;
  const grounded = grounding[example] >= index.runs[run].groundedAt ? "grounded" : "not_grounded";
  return `${correct[example] ? "right" : "wrong"}_${grounded}`;
}

const CHANGES = ["gained", "lost", "same"];

/** What becomes of an example's task from the first run to the second: "gained", "lost", "same", or null. */
function changeOf(index, example) {
  const [before, after] = index.outcomes.map((outcome) => outcome.correct[example]);
  if (typeof before !== "boolean" || typeof after !== "boolean") return null;
  return before === after ? "same" : after ? "gained" : "lost";
}

/** Two ends of a range "low..high", either of which may be missing. */
function rangeOf(text) {
  const [low, high] = (text || "").split("..").map((end) => (end === undefined || end.trim() === "" ? NaN : Number(end)));
  return [Number.isNaN(low) ? -Infinity : low, Number.isNaN(high) || high === undefined ? Infinity : high];
}

/** Numbers of the examples that the parameters choose, in their order. */
function chosen(index, params) {
  const run = runNumber(index, params.of), outcome = index.outcomes[run], table = index.table;
  const type = index.types.indexOf(params.type), words = (params.q || "").toLocaleLowerCase().trim();
  const tests = []; // of an address typed by hand, what is none of the choices is passed over
  if (words) tests.push((i) => index.searched[i].includes(words));
  if (Object.hasOwn(QUADRANTS, params.quadrant ?? "") || ["right", "wrong"].includes(params.quadrant)) tests.push((i) => matches(params.quadrant, index, run, i));
  if (CHANGES.includes(params.change)) tests.push((i) => changeOf(index, i) === params.change);
  if (params.type && type >= 0) tests.push((i) => table.types[i].includes(type));
  for (const [text, values] of [
    [params.phrases, (i) => table.types[i].length],
    [params.score, (i) => outcome.score[i]],
    [params.grounding, (i) => outcome.grounding[i]],
  ]) {
    if (!text) continue;
    const [low, high] = rangeOf(text);
    tests.push((i) => values(i) !== null && values(i) >= low && values(i) <= high);
  }
  const found = [];
  for (const i of listed(index, params.ids)) if (tests.every((test) => test(i))) found.push(i);
  return sorted(index, run, found, params.sort || "");
}

function matches(wanted, index, run, example) {
  if (wanted in QUADRANTS) return quadrantOf(index, run, example) === wanted;
  return index.outcomes[run].correct[example] === (wanted === "right");
}

function sorted(index, run, found, sort) {
  const by = sort.replace("-", ""), sign = sort.startsWith("-") ? -1 : 1;
  const values = {
    grounding: (i) => index.outcomes[run].grounding[i],
    score: (i) => index.outcomes[run].score[i],
    phrases: (i) => index.table.types[i].length,
    change: (i) => difference(index, i),
  }[by];
  if (!values) return found;
  const known = found.filter((i) => values(i) !== null);
  known.sort((one, other) => sign * (values(one) - values(other)) || one - other);
  return [...known, ...found.filter((i) => values(i) === null)];
}

/** Grounding in the second run minus that in the first. */
function difference(index, example) {
  const [before, after] = index.outcomes.map((outcome) => outcome.grounding[example]);
  return before === null || after === null || after === undefined ? null : after - before;
}

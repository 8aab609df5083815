// What is laid over the images: which kind of map, at which layer, of which head.

const KINDS = { boxes: "Boxes only", model: "Model", attention: "Attention", relevance: "Relevance", probe: "Probe" };
const ABSENT = {
  model: "this model gives boxes, no heatmaps",
  attention: "no attention in this report",
  relevance: "no relevance in this report",
  probe: "no sweep of this run, and no maps of probes",
};

/** The kind that a map parameter belongs to. */
function kindOf(map) {
  return map === FILTERED ? "attention" : map.split(".")[0];
}

/** A map in words. */
function mapName(map, view) {
  return map === FILTERED ? "attention beyond the other phrases’" : map === "model" ? "the model’s own heatmap" : view.name;
}

/** The layers that there is something to see at, in the run's order. */
function layersOf(run, map) {
  const asked = map === "probe" ? run.series.flatMap((series) => series.sites) : [];
  const found = new Set([...asked, ...(viewOf(run, map)?.units || []).map(([site]) => site)]);
  return map === "model" ? [...found] : run.sites.filter((site) => found.has(site));
}

/** The heads of a view at a layer; null is their mean, or the only map. */
function headsOf(run, map, site) {
  return (viewOf(run, map)?.units || []).filter(([own]) => own === site).map(([, head]) => head);
}

/** The layer of a run that goes with a layer of another: that of the same name, else at the same share of the depth. */
function sameLayer(run, map, site, layers) {
  const own = layersOf(run, map);
  if (own.includes(site)) return site;
  return own[Math.round((layers.indexOf(site) / Math.max(layers.length - 1, 1)) * (own.length - 1))];
}

/** A head in words. */
function headName(head, heads) {
  if (head !== null) return `head ${head}`;
  return heads.length > 1 ? "mean over heads" : "one map";
}

/** Controls for some runs: {element, state, layerBy(step), headBy(step), toLayer(run, site), nextKind()}; onchange is called with the state. */
function controlsOf(app, runs, params, onchange) {
  const views = [...new Set(runs.flatMap((run) => run.views.map((view) => view.view)))];
  if (views.includes("attention")) views.splice(views.indexOf("attention") + 1, 0, FILTERED);
  const maps = (kind) => views.filter((view) => kindOf(view) === kind);
  const there = {
    boxes: ["boxes"],
    model: maps("model"),
    attention: maps("attention"),
    relevance: maps("relevance"),
    probe: runs.some((run) => layersOf(run, "probe").length) ? ["probe"] : [],
  };
  const held = Object.values(there).flat();
  const state = { map: held.includes(params.map) ? params.map : there.model[0] || there.attention[0] || "boxes" };
  const element = h("div", { class: "controls", role: "group", "aria-label": "What is laid over the images" });
  const lead = () => runs.find((run) => layersOf(run, state.map).length) || runs[0];
  const layers = () => layersOf(lead(), state.map);
  const heads = () => headsOf(lead(), state.map, state.site);

  function settle({ site = state.site, head = state.head } = {}) {
    const own = layers();
    state.site = own.includes(site) ? site : own[own.length - 1];
    state.head = heads().includes(head) ? head : heads()[0] ?? null;
    state.layers = own;
  }
  function set(change) {
    Object.assign(state, { clicked: null }, change);
    settle();
    draw();
    onchange(state);
  }
  function draw() {
    const focused = element.contains(document.activeElement) && document.activeElement.dataset.key;
    const kinds = Object.entries(KINDS).map(([kind, words]) => h("button", {
      type: "button", "data-key": kind, "aria-pressed": String(kindOf(state.map) === kind), disabled: !there[kind].length,
      title: there[kind].length ? null : ABSENT[kind], onclick: () => set({ map: there[kind][0] }),
    }, words));
    const methods = there[kindOf(state.map)].map((map) => [map, mapName(map, runs.map((run) => viewOf(run, map)).find(Boolean) || {})]);
    refill(element,
      h("div", { class: "segments" }, kinds),
      methods.length > 1 && field("Method", choice(methods, state.map, (map) => set({ map }), { "data-key": "method" })),
      layers().length > 1 && slider("layer", "Layer", layers(), layers().indexOf(state.site), state.site, (place) => set({ site: layers()[place] })),
      heads().length > 1 && slider("head", "Head", heads(), heads().indexOf(state.head), headName(state.head, heads()), (place) => set({ head: heads()[place] })),
    );
    if (focused) element.querySelector(`[data-key="${focused}"]`)?.focus();
  }
  function slider(key, label, values, place, words, move) {
    const input = h("input", {
      type: "range", min: 0, max: values.length - 1, step: 1, "data-key": key, "aria-label": label, "aria-valuetext": words,
      oninput: () => move(Number(input.value)),
    });
    input.value = place;
    return field(label, [input, h("output", null, words)], { class: "field slider" });
  }
  function by(values, current, step, name) {
    const place = values.indexOf(current) + step;
    if (place >= 0 && place < values.length) set({ [name]: values[place] });
  }
  settle({ site: params.site, head: params.head === undefined ? null : Number(params.head) });
  draw();
  return {
    element,
    state,
    layerBy: (step) => by(layers(), state.site, step, "site"),
    headBy: (step) => by(heads(), state.head, step, "head"),
    /** To a layer of a run: of the map that is shown if that has the layer, else of probes, which were asked there. */
    toLayer(run, site) {
      const map = layersOf(run, state.map).includes(site) ? state.map : "probe", own = layersOf(run, map);
      state.map = map;
      set({ site: sameLayer(lead(), map, site, own), clicked: { run, site } });
    },
    nextKind() {
      const kinds = Object.keys(KINDS).filter((kind) => there[kind].length);
      set({ map: there[kinds[(kinds.indexOf(kindOf(state.map)) + 1) % kinds.length]][0] });
    },
  };
}

// One example: its caption, what each run made of it, and what lies over the images.

/** The page of one example. */
async function examplePage(app, route) {
  const { index } = app, place = index.places.get(route.id);
  if (place === undefined) return notFound(app, `There is no example called “${route.id}” in this report.`);
  const record = (await app.load(`examples-${Math.floor(place / index.chunk)}`))[place % index.chunk];
  const first = runNumber(index, route.params.a ?? route.params.of);
  const other = index.runs.length < 2 || route.params.b === "none" ? null : secondRun(index, route.params.b, first);
  return new ExampleView(app, route, record, place, other === null ? [first] : [first, other]).element;
}

function secondRun(index, text, first) {
  const number = text === undefined ? NaN : Number(text);
  return index.runs[number] && number !== first ? number : index.runs.findIndex((_, place) => place !== first);
}

function notFound(app, words) {
  return h("div", { class: "page" }, h("h1", { tabindex: "-1" }, "Not found"), h("p", null, words),
    link(app, { page: "gallery", params: {} }, { class: "button" }, "All examples"));
}

/** What is shown of one example, and what happens on it. */
class ExampleView {
  constructor(app, route, record, place, runs) {
    Object.assign(this, { app, route, record, place, runs });
    this.pinned = this.phraseNumber(route.params.phrase);
    this.pointed = null;
    this.drawn = 0;
    this.controls = controlsOf(app, runs.map((run) => app.index.runs[run]), route.params, () => this.changed());
    this.sides = runs.map((run) => this.side(run));
    this.element = this.page();
    app.keys = (event) => this.key(event);
    this.update();
  }

  phraseNumber(text) {
    const number = text === undefined ? -1 : Number(text) - 1;
    return this.record.phrases[number] ? number : null;
  }

  get active() {
    return this.pointed ?? this.pinned;
  }

  page() {
    const { app, record } = this;
    const caption = h("p", { class: "caption", dir: "auto", tabindex: record.caption.length > 600 ? "0" : null }, colouredCaption(app.index, record.caption, spansOf(record), (part, style) =>
      h("span", { class: "phrase", style, tabindex: "0", role: "button", "data-phrases": part.phrases.join(" "), ...this.marks(part.phrases[0]) },
        part.text, this.numberAfter(part))));
    this.caption = caption;
    return h("div", { class: "page example" },
      this.steps(),
      h("h1", { tabindex: "-1", dir: "auto" }, record.id),
      caption,
      app.index.runs.length > 1 && this.runChoices(),
      this.controls.element,
      h("div", { class: `sides of-${this.sides.length}` }, this.sides.map((side) => side.element)),
      legend(app, record, this.runs));
  }

  numberAfter(part) {
    const many = this.record.phrases.length > this.app.index.phraseColours.length;
    return many && part.phrases[0] !== undefined ? h("sup", null, part.phrases[0] + 1) : null;
  }

  /** Listeners of anything that stands for a phrase. */
  marks(phrase) {
    const point = (to) => () => {
      this.pointed = to;
      this.update();
    };
    const pin = () => this.pin(this.pinned === phrase ? null : phrase);
    return {
      onmouseenter: point(phrase), onmouseleave: point(null), onfocus: point(phrase), onblur: point(null), onclick: pin,
      "aria-pressed": "false", "data-pins": String(phrase),
      onkeydown: (event) => {
        if ((event.key === "Enter" || event.key === " ") && event.target.tagName !== "BUTTON") {
          event.preventDefault();
          pin();
        }
      },
    };
  }

  pin(phrase) {
    this.pinned = phrase;
    if (phrase === null) this.pointed = null;
    this.changed();
  }

  side(run) {
    const { app, record } = this, about = app.index.runs[run];
    const panels = panelsOf(app, record, run), words = h("p", { class: "map-words", "aria-live": "polite" });
    const facts = factsOf(app, record, run, (phrase) => this.marks(phrase), (site) => this.controls.toLayer(about, site));
    const element = h("section", { class: "side", "aria-label": about.name },
      this.runs.length > 1 && h("h2", { dir: "auto" }, about.name), h("div", { class: "seen" }, panels.element, words), facts.element);
    return { run, about, panels, words, facts, element };
  }

  runChoices() {
    const { app, runs } = this, names = app.index.runs.map((run, number) => [String(number), run.name]);
    const to = (change) => app.go({ ...this.route, params: { ...this.route.params, ...change } });
    const others = names.filter(([number]) => Number(number) !== runs[0]);
    return h("div", { class: "run-choices" },
      field("Checkpoint", choice(names, String(runs[0]), (a) => to({ a, b: runs.length > 1 && String(runs[1]) === a ? String(runs[0]) : this.route.params.b }), { "data-key": "a" })),
      field("Beside it", choice([...others, ["none", "nothing"]], runs.length > 1 ? String(runs[1]) : "none", (b) => to({ a: String(runs[0]), b }), { "data-key": "b" })));
  }

  steps() {
    const { app } = this, params = chosenBy(this.route.params), list = chosen(app.index, params), at = list.indexOf(this.place);
    const step = (by, words, key) => {
      const next = at < 0 ? undefined : list[at + by];
      if (next === undefined) return h("span", { class: "button disabled", "aria-disabled": "true" }, words);
      return link(app, this.routeTo(next), { class: "button", rel: key, "data-key": key }, words);
    };
    this.neighbour = (by) => (at < 0 || list[at + by] === undefined ? null : this.routeTo(list[at + by]));
    const where = at < 0 ? "not in the chosen examples" : `${at + 1} of ${counted(list.length, "example")}`;
    return h("nav", { class: "steps", "aria-label": "Examples" },
      link(app, { page: "gallery", params }, { class: "button" }, "All examples"), h("span", { class: "where" }, where),
      step(-1, "← Previous", "prev"), step(1, "Next →", "next"));
  }

  /** The same view of another example. */
  routeTo(place) {
    const { phrase, ...params } = this.route.params;
    return { page: "example", id: this.app.index.table.id[place], params };
  }

  /** Something was chosen: it goes into the address, and is drawn. */
  changed() {
    const { map, site, head } = this.controls.state;
    const params = { ...this.route.params, map, site, head: head ?? undefined, phrase: this.pinned === null ? undefined : this.pinned + 1 };
    this.route = { ...this.route, params };
    this.app.note(this.route);
    for (const [by, key] of [[-1, "prev"], [1, "next"]]) {
      const to = this.neighbour(by);
      if (to) this.element.querySelector(`[data-key="${key}"]`)?.setAttribute("href", `#${formatRoute(this.routeTo(this.app.index.places.get(to.id)))}`);
    }
    this.update();
  }

  async update() {
    const turn = ++this.drawn, phrase = this.active;
    for (const mark of this.element.querySelectorAll("[data-pins]")) {
      mark.setAttribute("aria-pressed", String(Number(mark.dataset.pins) === this.pinned));
    }
    for (const mark of this.caption.querySelectorAll("[data-phrases]")) {
      mark.classList.toggle("active", phrase !== null && mark.dataset.phrases.split(" ").includes(String(phrase)));
    }
    this.caption.classList.toggle("pointing", phrase !== null);
    for (const side of this.sides) side.facts.show(phrase, this.layerOf(side));
    const maps = await Promise.all(this.sides.map((side) => this.mapOf(side, phrase)));
    if (turn !== this.drawn) return; // another phrase or layer was chosen meanwhile
    this.sides.forEach((side, number) => {
      side.panels.show(phrase, maps[number].map, maps[number].words);
      refill(side.words, maps[number].words);
    });
    this.element.dataset.drawn = String(turn);
  }

  layerOf(side) {
    const { map, site, layers, clicked } = this.controls.state;
    if (clicked?.run === side.about) return clicked.site; // the nearest of the run that leads may be the nearest of several here
    return site === undefined ? undefined : sameLayer(side.about, map, site, layers);
  }

  /** The map of a phrase for one side, and what it is in words. */
  async mapOf(side, phrase) {
    const { map, head } = this.controls.state, view = viewOf(side.about, map), run = this.record.runs[side.run];
    const found = phrase === null ? null : run.phrases[phrase];
    const told = (words) => ({ map: null, words });
    if (map === "boxes") return told(null);
    if (!view) return told(map === "probe" ? this.probeWords(side, found) : `${capital(KINDS[kindOf(map)].toLowerCase())}: ${side.about.name} has none.`);
    const site = this.layerOf(side), heads = headsOf(side.about, map, site), own = heads.includes(head) ? head : heads[0];
    const name = `${mapName(map, view)}${map === "model" ? "" : ` at ${site}`}${heads.length > 1 || (own ?? null) !== null ? `, ${headName(own, heads)}` : ""}`;
    if (phrase === null) return told(`${capital(name)}: choose a phrase to see its map.`);
    if (!found) return told("This run leaves the phrase out.");
    const unit = view.units.findIndex(([at, of]) => at === site && of === own);
    if (unit < 0) return told(`${capital(name)}: this report has no map at this layer.${map === "probe" ? ` ${this.probeWords(side, found)}` : ""}`);
    const maps = await mapsOf(this.app, side.run, view, this.place);
    const every = run.phrases.map((each, place) => (each && (map === FILTERED || place === phrase) ? phraseMap(maps, unit, each.map) : null));
    const drawn = map === FILTERED ? withoutSinks(every, phrase) : every[phrase];
    if (!drawn || !drawn.peak) return told(`${capital(name)}: zero everywhere for this phrase.`);
    const remark = map === "probe" ? SEEN[run.part] : map === FILTERED && every.filter(Boolean).length === 1 ? "The only phrase: there is nothing to compare it with." : null;
    const checked = drawn.remark && `${capital(drawn.remark)}.`;
    const stored = map === "model" ? storedPeak(found, this.record.phrases[phrase]) : null;
    return { map: drawn, words: [this.mapWords(name, drawn, phrase, stored), remark, checked].filter(Boolean).join(" ") };
  }

  /** A map in words. stored: where its peak is by the run's tables, which know more than what is drawn; null: nothing of it. */
  mapWords(name, map, phrase, stored) {
    const images = this.record.images.length, peak = peakOf(map, images), own = this.record.phrases[phrase];
    const where = ({ image, inside }) => {
      const at = images > 1 && image !== null ? ` in ${candidate(image)}${image === own.image ? "" : ", not the phrase’s"}` : "";
      return `${at}${inside === null ? "" : `${at && ","} ${inside ? "inside" : "outside"} the true region`}`;
    };
    const drawn = { image: peak.image, inside: own.boxes.length ? peak.image === own.image && holds(own, peak.x, peak.y) : null };
    const apart = stored && Object.entries(stored).some(([key, value]) => value !== null && value !== drawn[key]);
    const told = `${capital(name)} of “${own.text}”: strongest${where(stored || drawn)} (largest value ${peak.value.toPrecision(2)}, ${number(peak.ratio, peak.ratio < 10 ? 1 : 0)} times the mean).`;
    return apart ? `${told} It is drawn coarser, as means over cells: the strongest of them lies${where(drawn)}.` : told;
  }

  probeWords(side, found) {
    if (!side.about.series.length) return `${side.about.name} has no sweep.`;
    if (!found) return "Choose a phrase to see at which layers a probe finds it.";
    const site = this.layerOf(side);
    const told = side.about.series.flatMap((series, place) => {
      const value = found.probes[place]?.[series.sites.indexOf(site)];
      if (value === undefined || value === null) return [];
      const iou = found.ious[place]?.[series.sites.indexOf(site)];
      return [`${series.probe} ${value >= 0.5 ? "finds it" : "does not find it"}${iou === undefined || iou === null ? "" : ` (IoU ${number(iou)})`}`];
    });
    return told.length ? `Probes at ${site}: ${told.join("; ")}.` : `No probe was asked about it at ${site}: ${notAsked(this.record.runs[side.run])}.`;
  }

  key(event) {
    const go = (by) => {
      const to = this.neighbour(by);
      if (to) this.app.go(to);
      return true;
    };
    const phrases = this.record.phrases.length;
    const turn = (by) => phrases && (this.pin(this.pinned === null ? (by > 0 ? 0 : phrases - 1) : (this.pinned + by + phrases) % phrases), true);
    const acts = {
      j: () => go(1), ArrowRight: () => go(1), k: () => go(-1), ArrowLeft: () => go(-1),
      ArrowDown: () => turn(1), ArrowUp: () => turn(-1), Escape: () => (this.pin(null), true),
      "]": () => (this.controls.layerBy(1), true), "[": () => (this.controls.layerBy(-1), true),
      ".": () => (this.controls.headBy(1), true), ",": () => (this.controls.headBy(-1), true),
      m: () => (this.controls.nextKind(), true),
    };
    if (/^[1-9]$/.test(event.key) && Number(event.key) <= phrases) return this.pin(Number(event.key) - 1), true;
    return acts[event.key]?.();
  }
}

/** What a probe's map of an example is worth, by the part of the probes' split that the example is in. */
const SEEN = {
  train: "The probe learned from this image: that it finds the phrase here says little.",
  validation: "The probe was tuned with this image, not fitted to it.",
  test: "The probe never saw this image.",
};

/** What lines, marks and colours mean. */
function legend(app, record, runs) {
  const heated = runs.map((run) => app.index.runs[run].heatmaps), point = Array.isArray(record.target);
  const dashed = heated.every(Boolean) ? "box round the model’s peak" : heated.some(Boolean) ? "the model’s box, or a box round its heatmap’s peak" : "the model’s box";
  const entry = (kind, words) => h("li", null, h("span", { class: `sample ${kind}`, "aria-hidden": "true" }), words);
  return h("ul", { class: "legend", "aria-label": "Legend" },
    entry("solid", "true region"), entry("dashed", dashed),
    point && entry("ring", "target"), point && entry("cross", "the model’s answer"),
    entry("heat", "map: from its mean to its largest value"));
}

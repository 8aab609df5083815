// The images of one run's answer: each with its map and outlines, laid over it without distortion.

/** Panels of an example for one run: {element, show(phrase, map, words)}. */
function panelsOf(app, record, run) {
  const single = record.images.length === 1;
  const panels = record.images.map((image, number) => panelOf(app, record, run, image, number));
  const columns = [3, 5, 4, 2].find((each) => record.images.length % each === 0) || 4;
  const wide = single && record.images[0].width > 4 * record.images[0].height;
  const element = h("div", { class: `panels${single ? " single" : ""}${wide ? " wide" : ""}`, style: { "--columns": columns } },
    panels.map((panel) => panel.element));
  /** Show the map (null: none) and outlines of a phrase (null: of all); words: what the map is of. */
  function show(phrase, map, words) {
    for (const panel of panels) panel.show(phrase, map, words);
  }
  return { element, show };
}

function panelOf(app, record, run, image, number) {
  const found = record.runs[run], game = typeof record.target === "number" && record.images.length > 1;
  const target = game && record.target === number, answered = game && found.answer === number;
  const state = target ? (answered ? "target answered" : "target") : answered ? "mistaken" : "";
  const label = [game && capital(candidate(number)), target && "target", answered && "model’s answer"].filter(Boolean);
  const caption = label.length > 0 && h("figcaption", null, label[0],
    target && h("span", { class: "tag right" }, answered ? "✓ target" : "target"),
    answered && !target && h("span", { class: "tag wrong" }, "✗ answer"));
  if (image.missing) {
    const reason = h("div", { class: "placeholder" }, h("strong", null, "No image"), h("span", { dir: "auto" }, image.missing));
    return { element: h("figure", { class: `panel ${state}` }, reason, caption), show() {} };
  }
  const { width, height } = image;
  const seen = picture(app, `images/${image.src}`, { alt: described(record, run, number, label), width, height, draggable: "false" });
  const canvas = h("canvas", { class: "map", width, height, role: "img", hidden: true });
  const shapes = outlines(app, record, run, number, width, height);
  const over = s("svg", { class: "outlines", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, shapes);
  const stack = h("div", { class: "stack", style: { "aspect-ratio": `${width} / ${height}`, "--ratio": width / height } },
    seen, canvas, over);
  const frame = h("div", { class: "frame" }, stack);
  function show(phrase, map, words) {
    stack.classList.toggle("mapped", Boolean(map));
    canvas.hidden = !map;
    if (map) {
      paintMap(canvas, map, record.images.length, number, app.index.heat);
      const part = peakOf(map, record.images.length).shares[number];
      canvas.setAttribute("aria-label", `${words}: ${Math.round(100 * part)} % of it in this image`);
    }
    over.classList.toggle("chosen", phrase !== null);
    for (const shape of shapes) {
      const own = shape.getAttribute("data-phrase");
      shape.classList.toggle("faded", phrase !== null && own !== null && Number(own) !== phrase);
    }
  }
  return { element: h("figure", { class: `panel ${state}` }, frame, caption), show };
}

/** An image in words: which it is, which phrases lie in it, which the model puts there. */
function described(record, run, number, label) {
  const found = record.runs[run];
  const inside = record.phrases.filter((phrase) => phrase.image === number && phrase.boxes.length);
  const put = record.phrases.filter((_, place) => found.phrases[place]?.predicted?.image === number);
  const parts = [label.join(", ") || "The image"];
  if (inside.length) parts.push(`true regions: ${inside.map((phrase) => phrase.text).join(", ")}`);
  if (put.length) parts.push(`the model puts here: ${put.map((phrase) => phrase.text).join(", ")}`);
  return `${parts.join("; ")}.`;
}

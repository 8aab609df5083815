// Drawing on a candidate image: a map's colours, and regions and boxes as outlines.

/** Paint a map over a canvas of the image's own pixels: clear up to the mean, nearly opaque at the largest value. */
function paintMap(canvas, map, images, index, heat) {
  const { width, height } = canvas, context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const strength = strengths(map.cells), places = cellsOfPixels(map, images, index, height, width);
  const colours = Array.from(strength, (value) => heat[Math.round(255 * value)]);
  const alphas = Uint8ClampedArray.from(strength, (value) => Math.round(255 * 0.92 * value ** 0.75));
  for (let pixel = 0; pixel < places.length; pixel++) {
    const cell = places[pixel], colour = colours[cell];
    pixels.data.set([colour[0], colour[1], colour[2], alphas[cell]], 4 * pixel);
  }
  context.putImageData(pixels, 0, 0);
}

/** Take a map off a canvas. */
function clearMap(canvas) {
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
}

/**
 * An outline twice: a pale rim, so that it is seen on any picture, and the line in its colour.
 * shared: {place, count} of it among those that lie on each other, each of which has its turn in the dashes of the line.
 */
function outlined(phrase, kind, colour, make, shared = { place: 0, count: 1 }) {
  const style = { "--phrase": colour, "--turn": shared.place, "--turns": shared.count };
  const classes = `outline ${kind}${shared.count > 1 ? " shared" : ""}${shared.place ? " later" : ""}`;
  return s("g", { class: classes, "data-phrase": phrase, style }, make("rim"), make("line"));
}

/** For each box of a list, its place among those that (nearly) lie on it, and their number. */
function sharing(boxes) {
  const near = (one, other) => one.every((value, corner) => Math.abs(value - other[corner]) < SAME);
  return boxes.map((box, number) => {
    const same = boxes.flatMap((other, place) => (near(box, other) ? [place] : []));
    return { place: same.indexOf(number), count: same.length };
  });
}

const SAME = 0.02; // of the image's side

/** A relative box as a rectangle of an image of that size. */
function rectangle([x1, y1, x2, y2], width, height) {
  const place = { x: x1 * width, y: y1 * height, width: (x2 - x1) * width, height: (y2 - y1) * height };
  return (name) => s("rect", { class: name, ...place });
}

/** Relative vertices as a closed line. */
function outline(points, width, height) {
  const places = points.map(([x, y]) => `${x * width},${y * height}`).join(" ");
  return (name) => s("polygon", { class: name, points: places });
}

/** True regions and predicted boxes of every phrase in candidate `image`, and the points of a spatial description. */
function outlines(app, record, run, image, width, height) {
  const found = record.runs[run], drawn = [], boxes = { true: [], predicted: [] };
  record.phrases.forEach((phrase, number) => {
    const colour = phraseColour(app.index, number), predicted = found.phrases[number]?.predicted;
    if (phrase.image === image && phrase.polygons.length) {
      drawn.push(...phrase.polygons.map((points) => outlined(number, "true", colour, outline(points, width, height))));
    } else if (phrase.image === image) {
      boxes.true.push(...phrase.boxes.map((box) => ({ number, colour, box })));
    }
    if (predicted && predicted.image === image) boxes.predicted.push({ number, colour, box: predicted.box });
  });
  for (const [kind, placed] of Object.entries(boxes)) {
    const shared = sharing(placed.map(({ box }) => box));
    drawn.push(...placed.map(({ number, colour, box }, place) => outlined(number, kind, colour, rectangle(box, width, height), shared[place])));
  }
  if (Array.isArray(record.target)) drawn.push(...points(record, found, width, height));
  return drawn;
}

/** Target (a ring) and answer (a cross) of a spatial description. */
function points(record, found, width, height) {
  const size = 0.045 * Math.min(width, height), [x, y] = record.target;
  const ring = (name) => s("circle", { class: name, cx: x * width, cy: y * height, r: size });
  const drawn = [s("g", { class: "point target" }, ring("rim"), ring("line"))];
  if (found.answer) {
    const [ax, ay] = [found.answer[0] * width, found.answer[1] * height];
    const path = `M${ax - size},${ay - size}L${ax + size},${ay + size}M${ax - size},${ay + size}L${ax + size},${ay - size}`;
    const cross = (name) => s("path", { class: name, d: path });
    drawn.push(s("g", { class: `point answer ${found.correct ? "right" : "wrong"}` }, cross("rim"), cross("line")));
  }
  return drawn;
}

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

/** An outline twice: a pale rim, so that it is seen on any picture, and the line in its colour. */
function outlined(phrase, kind, colour, make) {
  return s("g", { class: `outline ${kind}`, "data-phrase": phrase, style: { "--phrase": colour } },
    make("rim"), make("line"));
}

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
  const found = record.runs[run], drawn = [];
  record.phrases.forEach((phrase, number) => {
    const colour = phraseColour(app.index, number);
    if (phrase.image === image) {
      const shapes = phrase.polygons.length
        ? phrase.polygons.map((points) => outline(points, width, height))
        : phrase.boxes.map((box) => rectangle(box, width, height));
      drawn.push(...shapes.map((shape) => outlined(number, "true", colour, shape)));
    }
    const predicted = found.phrases[number]?.predicted;
    if (predicted && predicted.image === image) {
      drawn.push(outlined(number, "predicted", colour, rectangle(predicted.box, width, height)));
    }
  });
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

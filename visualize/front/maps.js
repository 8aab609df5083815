// Maps of phrases: unpacked from the chunks, spread over the pixels of candidates, told in words.

/** Bytes of a deflated base64 text. */
async function inflated(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** A chunk of maps with its cells, peaks and means unpacked, and the first cell of each phrase. */
async function unpacked(chunk) {
  const [cells, peaks, means] = await Promise.all([chunk.cells, chunk.peaks, chunk.means].map(inflated));
  const begins = [0];
  for (const [rows, columns] of chunk.grids) begins.push(begins[begins.length - 1] + rows * columns);
  return { ...chunk, cells, peaks: new Float32Array(peaks.buffer), means: new Float32Array(means.buffer), begins };
}

const FILTERED = "sink-filtered"; // made here, of attention

/** The view of a run that a map is read from. */
function viewOf(run, map) {
  const name = map === FILTERED ? "attention" : map;
  return run.views.find((view) => view.view === name);
}

/** Chunk of maps that an example lies in. */
async function mapsOf(app, runNumber, view, example) {
  const chunk = await app.load(`maps-${runNumber}-${view.view}-${Math.floor(example / view.chunk)}`, unpacked);
  const first = chunk.firsts[example % view.chunk];
  return { chunk, first };
}

/** One phrase's map: {rows, columns, cells, peak, mean, remark}, or null where it has none. unit: its number in the view. */
function phraseMap({ chunk, first }, unit, phrase) {
  const place = first + phrase, phrases = chunk.grids.length, all = chunk.begins[phrases];
  const [rows, columns] = chunk.grids[place];
  if (!rows) return null;
  const begin = unit * all + chunk.begins[place];
  const cells = chunk.cells.subarray(begin, begin + rows * columns), [peak, mean] = [chunk.peaks, chunk.means].map((all) => all[unit * phrases + place]);
  return { rows, columns, cells, peak, mean, remark: chunk.remarks[unit]?.[place] };
}

/**
 * What one of an example's maps holds beyond the mean of the others, at least zero (grounding/sinks.py). What is no more
 * than the steps that maps are stored in counts as zero. The only map of an example stays as it is.
 */
function withoutSinks(maps, place) {
  const own = maps[place], others = maps.filter((map, number) => map && number !== place);
  if (!own || !others.length) return own;
  const step = (own.peak + others.reduce((sum, { peak }) => sum + peak, 0) / others.length) / 510;
  const cells = Float32Array.from(own.cells, (cell, at) => {
    const rest = others.reduce((sum, map) => sum + map.cells[at] * map.peak, 0) / others.length;
    const beyond = (cell * own.peak - rest) / 255;
    return beyond > step ? beyond : 0;
  });
  const mean = cells.reduce((sum, cell) => sum + cell, 0) / cells.length;
  return { ...own, cells, mean, peak: cells.reduce((largest, cell) => Math.max(largest, cell), 0) };
}

/** Strength of colour of each cell, 0 to 1: 0 up to the mean, 1 at the largest, which counts as twice the mean at least. */
function strengths(cells) {
  let sum = 0, largest = 0;
  for (const value of cells) {
    sum += value;
    if (value > largest) largest = value;
  }
  const mean = sum / cells.length, reach = Math.max(largest - mean, mean);
  return Float32Array.from(cells, (value) => (largest ? Math.min(Math.max((value - mean) / reach, 0), 1) : 0));
}

/**
 * Which cell each pixel of a candidate lies in. A grid is laid over the stacked candidates, whose bands of rows are
 * equal; a pixel belongs to the cell that holds its centre. Whole numbers throughout: no rounding moves a border.
 */
function cellsOfPixels(map, images, index, height, width) {
  const cells = new Uint32Array(height * width);
  for (let y = 0; y < height; y++) {
    const row = Math.floor(((2 * (index * height + y) + 1) * map.rows) / (2 * height * images));
    for (let x = 0; x < width; x++) {
      cells[y * width + x] = row * map.columns + Math.floor(((2 * x + 1) * map.columns) / (2 * width));
    }
  }
  return cells;
}

/** Where a map is largest: {image, x, y (relative to it), value, ratio to the mean, share of each image}. */
function peakOf(map, images) {
  const { cells, rows, columns } = map;
  const shares = new Array(images).fill(0);
  let best = 0, sum = 0;
  for (let cell = 0; cell < cells.length; cell++) {
    if (cells[cell] > cells[best]) best = cell;
    sum += cells[cell];
    shares[Math.min(Math.floor(((Math.floor(cell / columns) + 0.5) * images) / rows), images - 1)] += cells[cell];
  }
  const y = ((Math.floor(best / columns) + 0.5) * images) / rows, image = Math.min(Math.floor(y), images - 1);
  return {
    image,
    x: ((best % columns) + 0.5) / columns,
    y: y - image,
    value: map.peak,
    ratio: map.mean ? map.peak / map.mean : 0,
    shares: shares.map((share) => (sum ? share / sum : 0)),
  };
}

/**
 * Where the peak of the model's own heatmap lies: {image, inside the true region}, null what is unknown. The stored answer knows
 * it of the whole heatmap, of which the map holds means over cells. null where nothing is stored.
 */
function storedPeak({ predicted, pointing }, phrase) {
  if (predicted === null && pointing === null) return null;
  const inside = pointing === null ? null : pointing > 0;
  return { image: predicted ? predicted.image : inside ? phrase.image : null, inside };
}

/** Whether a relative point of a phrase's image lies in the boxes of its regions, by which runs measure where a model points. */
function holds({ boxes }, x, y) {
  return boxes.some(([x1, y1, x2, y2]) => x1 <= x && x <= x2 && y1 <= y && y <= y2);
}

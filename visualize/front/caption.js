// Captions with coloured phrases.

/** A phrase's colour, the same in caption, boxes and figures. */
function phraseColour(index, number) {
  return index.phraseColours[number % index.phraseColours.length];
}

/** A caption cut where phrases begin and end: [{text, phrases}], the innermost phrase first. spans: [phrase, begin, end]. */
function segments(caption, spans) {
  const characters = Array.from(caption); // spans count code points, strings of JavaScript do not
  const cuts = new Set([0, characters.length]);
  for (const [, begin, end] of spans) cuts.add(begin).add(end);
  const ends = [...cuts].filter((cut) => cut >= 0 && cut <= characters.length).sort((one, other) => one - other);
  return ends.slice(1).map((end, place) => {
    const begin = ends[place];
    const inside = spans.filter((span) => span[1] <= begin && end <= span[2]);
    inside.sort((one, other) => one[2] - one[1] - (other[2] - other[1]));
    return { text: characters.slice(begin, end).join(""), phrases: inside.map((span) => span[0]) };
  });
}

/** The parts of a caption as elements. mark: what is made of a phrase's part; plain coloured text without it. */
function colouredCaption(index, caption, spans, mark = plainMark) {
  return segments(caption, spans).map((part) => {
    if (!part.phrases.length) return part.text;
    return mark(part, phraseStyle(index, part.phrases));
  });
}

function plainMark(part, style) {
  return h("span", { class: "phrase", style }, part.text);
}

/** Colours of a part as style: the innermost phrase's, and that of the one around it. */
function phraseStyle(index, phrases) {
  const outer = phrases[1] ?? phrases[0];
  return { "--phrase": phraseColour(index, phrases[0]), "--around": phraseColour(index, outer) };
}

/** All spans of an example's phrases: [phrase, begin, end]. */
function spansOf(record) {
  return record.phrases.flatMap((phrase, number) => phrase.spans.map((span) => [number, ...span]));
}

// Numbers and summaries in words.

const QUADRANTS = {
  right_grounded: "right, grounded",
  right_not_grounded: "right, not grounded",
  wrong_grounded: "wrong, grounded",
  wrong_not_grounded: "wrong, not grounded",
};

/** A number as text, with a true minus sign; a dash where it is unknown. */
function number(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  return value.toFixed(digits).replace("-", "−");
}

/** A score of any size as text. */
function scored(value) {
  if (value === null || value === undefined) return "–";
  return (Math.abs(value) >= 0.01 || value === 0 ? value.toFixed(2) : value.toPrecision(2)).replace("-", "−");
}

/** "1 phrase", "3 phrases". */
function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/** "3 of 40 (8 %)". */
function share(count, all) {
  return all ? `${count} of ${all} (${Math.round((100 * count) / all)} %)` : `${count} of 0`;
}

/** A word with a capital. */
function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** A candidate, counted from 0 as in the figures and the tables of a run. */
function candidate(index) {
  return `candidate ${index}`;
}

/** The blocks of a summary as elements; headings begin at `level`. */
function summary(blocks, level) {
  const least = Math.min(...blocks.filter((block) => block.kind === "heading").map((block) => block.level), 6);
  return blocks.map((block) => {
    if (block.kind === "heading") return h(`h${Math.min(level + block.level - least, 6)}`, null, block.text);
    if (block.kind === "list") return h("ul", null, block.items.map((item) => h("li", null, item)));
    if (block.kind === "table") return table(block.rows[0], block.rows.slice(1));
    return block.kind === "code" ? h("pre", null, block.text) : h("p", { class: "lines" }, block.text);
  });
}

/** A table whose first column names its rows; wider ones scroll by themselves. */
function table(head, rows, caption) {
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "group", "aria-label": caption || "Table" },
    h(
      "table",
      null,
      caption && h("caption", null, caption),
      h("thead", null, h("tr", null, head.map((cell) => h("th", { scope: "col" }, cell)))),
      h("tbody", null, rows.map(([first, ...rest]) =>
        h("tr", null, h("th", { scope: "row" }, first), rest.map((cell) => h("td", null, cell))))),
    ),
  );
}

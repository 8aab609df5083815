// Elements without markup: whatever a caption holds, it becomes text.

const SVG = "http://www.w3.org/2000/svg";

/** An element. Strings and numbers become text; null, undefined and false are left out. */
function h(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** An SVG element. */
function s(tag, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, to] of Object.entries(value)) element.style.setProperty(key, to);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Put children in the place of those that an element has. */
function refill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter(Boolean));
}

/** A link to a place in the report; a plain click stays inside the page. */
function link(app, route, attributes, ...children) {
  const follow = (event) => {
    if (event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    app.go(route);
  };
  return h("a", { ...attributes, href: `#${formatRoute(route)}`, onclick: follow }, ...children);
}

/** An image of the source, which may take a moment to say where it is, or that there is none. path: images/… or figures/…. */
function picture(app, path, attributes) {
  const image = h("img", { decoding: "async", ...attributes });
  const absent = (error) => image.replaceWith(h("span", { class: `${attributes.class || ""} placeholder`, title: error.message }, "no image"));
  Promise.resolve(app.source.file(path)).then((url) => image.setAttribute("src", url), absent);
  return image;
}

/** A labelled field of a form. */
function field(label, control, attributes) {
  return h("label", { class: "field", ...attributes }, h("span", { class: "field-name" }, label), control);
}

/** A drop-down list. choices: [value, words] pairs. */
function choice(choices, value, onchange, attributes) {
  const select = h(
    "select",
    { ...attributes, onchange: () => onchange(select.value) },
    choices.map(([key, words]) => h("option", { value: key, selected: key === value }, words)),
  );
  return select;
}

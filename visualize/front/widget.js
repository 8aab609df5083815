// The report as an anywidget. The model answers {load: NAME} with {name: NAME, chunk} and {file: PATH} with {name: PATH}
// and the file as its only buffer, or either with {name, error}. Its traits: route (text), selected (ids).

function modelSource(model) {
  const waiting = new Map();
  const answered = ({ name, chunk, error }, buffers) => {
    const [resolve, reject] = waiting.get(name) || [];
    waiting.delete(name);
    if (error) reject?.(new Error(error));
    else resolve?.(chunk === undefined ? URL.createObjectURL(new Blob([buffers[0]], { type: mediaType(name) })) : chunk);
  };
  model.on("msg:custom", answered);
  const files = new Map();
  const ask = (kind, name) =>
    new Promise((resolve, reject) => {
      waiting.set(name, [resolve, reject]);
      model.send({ [kind]: name });
    });
  function file(path) {
    if (!files.has(path)) files.set(path, ask("file", path));
    return files.get(path);
  }
  function end() {
    model.off("msg:custom", answered);
    for (const url of files.values()) url.then(URL.revokeObjectURL, () => {});
  }
  return { load: (name) => ask("load", name), file, end };
}

function mediaType(name) {
  return { svg: "image/svg+xml", png: "image/png", webp: "image/webp" }[name.split(".").pop()];
}

function traitRouter(model) {
  let writing = false; // a change that comes from here is shown already
  return {
    read: () => model.get("route") || "",
    write(text) {
      writing = true;
      model.set("route", text);
      writing = false;
      model.save_changes();
    },
    listen(callback) {
      const changed = () => writing || callback();
      model.on("change:route", changed);
      return () => model.off("change:route", changed);
    },
  };
}

/** Light or dark, where the notebook says which it is: JupyterLab and VS Code do. */
function themeAround() {
  const { classList, dataset } = document.body;
  if (dataset.jpThemeLight) return dataset.jpThemeLight === "false" ? "dark" : "light";
  return ["light", "dark"].find((theme) => classList.contains(`vscode-${theme}`));
}

function render({ model, el }) {
  const onselect = (ids) => {
    model.set("selected", ids);
    model.save_changes();
  };
  const source = modelSource(model);
  const shown = mount(el, source, { router: traitRouter(model), theme: themeAround(), onselect });
  return () => {
    source.end();
    shown.then(({ end }) => end());
  };
}

export default { render };

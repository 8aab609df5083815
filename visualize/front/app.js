// The report as a whole: what it is of, where one is in it, and the pages that show it.

const HELD = 24; // chunks that are kept in memory

/**
 * Show a report in an element. source: {load(name) -> Promise of a chunk, file(path) -> URL or its Promise}.
 * router: {read() -> text, write(text, replace), listen(callback) -> function that ends it}. whole: whether the page is
 * the report's own. theme: light or dark, where what is around it is; the system's if not given. onselect: called with
 * the ids that the gallery shows, and with the one that is open.
 * Returns {go(route), end()}.
 */
async function mount(element, source, { router, whole = false, theme, onselect = () => {} }) {
  element.classList.add("probe-report");
  const main = h("main", { id: "probe-report-main" });
  const app = { element, source, whole, theme, keys: null, wide: element.clientWidth > 700, load: cached(source) };
  app.go = (route) => {
    router.write(formatRoute(route), false);
    return show();
  };
  app.note = (route) => router.write(formatRoute(route), true);
  app.selected = (ids) => onselect(ids);
  refill(element, header(app), main);
  const deaf = listenToKeys(app);
  try {
    app.index = prepared(await app.load("index"));
  } catch (error) {
    refill(main, h("p", { class: "failure", role: "alert" }, error.message));
    return { go: app.go, end: deaf };
  }
  let turn = 0, left; // left: the example that was open before
  async function show() {
    const route = parseRoute(router.read()), own = ++turn, first = own === 1;
    app.keys = null;
    const key = main.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
    let page;
    try {
      page = await PAGES[route.page](app, route);
    } catch (error) {
      page = h("p", { class: "failure", role: "alert" }, error.message);
    }
    if (own !== turn) return;
    refill(main, page);
    if (route.page === "example") onselect([route.id]);
    for (const tab of element.querySelectorAll("[data-page]")) {
      const here = tab.dataset.page === (route.page === "example" ? "gallery" : route.page);
      if (here) tab.setAttribute("aria-current", "page");
      else tab.removeAttribute("aria-current");
    }
    if (whole) document.title = `${route.id || (route.page === "gallery" ? "Examples" : app.index.title)} – grounding report`;
    const marked = (name, value) => (value === undefined ? null : main.querySelector(`[data-${name}="${CSS.escape(value)}"]`));
    const card = route.page === "gallery" ? marked("example", left) : null;
    left = route.id;
    if (first) return;
    const same = marked("key", key);
    if (!same && !card && whole) scrollTo(0, 0);
    (same || card || main.querySelector("h1"))?.focus({ preventScroll: Boolean(same) });
  }
  const still = router.listen(show);
  await show();
  requestAnimationFrame(() => setTimeout(() => performance.mark("probe-report-shown"))); // for those who time it
  return {
    go: app.go,
    end() {
      still();
      deaf();
    },
  };
}

const PAGES = { overview: overviewPage, gallery: galleryPage, example: examplePage };

/** Chunks of a source, of which the last are kept. make: what becomes of a chunk before it is kept. */
function cached(source) {
  const held = new Map();
  return (name, make = (chunk) => chunk) => {
    if (!held.has(name)) {
      const chunk = source.load(name).then(make);
      chunk.catch(() => held.delete(name));
      held.set(name, chunk);
      if (held.size > HELD) held.delete([...held.keys()].find((key) => key !== "index"));
    }
    return held.get(name);
  };
}

/** The index with what is looked up often. */
function prepared(index) {
  const { id, caption } = index.table;
  let searched; // only those who search need it
  return {
    ...index,
    get searched() {
      return (searched ??= id.map((name, example) => `${caption[example]}\n${name}`.toLocaleLowerCase()));
    },
    places: new Map(id.map((name, example) => [name, example])),
    tallies: [],
  };
}

function header(app) {
  const tab = (page, words) => link(app, { page, params: {} }, { "data-page": page }, words);
  return h("header", { class: "bar" },
    app.whole && h("a", { class: "skip", href: "#probe-report-main", onclick: (event) => { event.preventDefault(); app.element.querySelector("h1")?.focus(); } }, "Skip to the content"),
    h("span", { class: "brand" }, "Grounding report"),
    h("nav", { "aria-label": "Pages" }, tab("overview", "Overview"), tab("gallery", "Examples")),
    h("span", { class: "tools" }, themeButton(app), h("button", { type: "button", class: "quiet", "aria-label": "Keys", title: "Keys (?)", onclick: () => app.help() }, "?")));
}

/** Light or dark: as what is around it, or as the system has it, until one is chosen here. */
function themeButton(app) {
  const dark = matchMedia("(prefers-color-scheme: dark)"), key = "probe-report-theme";
  const current = () => app.element.dataset.theme || (dark.matches ? "dark" : "light");
  const button = h("button", { type: "button", class: "quiet", onclick: () => set(current() === "dark" ? "light" : "dark", true) });
  function set(theme, remember) {
    if (theme) app.element.dataset.theme = theme;
    if (app.whole && theme) document.documentElement.style.colorScheme = theme;
    refill(button, current() === "dark" ? "Light" : "Dark");
    button.setAttribute("aria-label", `Switch to the ${current() === "dark" ? "light" : "dark"} theme`);
    if (remember) remembered(key, theme);
  }
  set(remembered(key) || app.theme);
  dark.addEventListener("change", () => set());
  return button;
}

/** A value that the browser keeps, where it may: some refuse that to files. */
function remembered(key, value) {
  try {
    if (value !== undefined) localStorage.setItem(key, value);
    return localStorage.getItem(key) || undefined;
  } catch {
    return undefined;
  }
}

// Starts the report: a page opened from a file, whose data are classic scripts that call probeReport.chunk.

const arrived = new Map();
window.probeReport = {
  chunk(name, value) {
    arrived.set(name, value);
  },
};

const addresses = window.trustedTypes?.createPolicy("probe-report", { createScriptURL: ownData }) || { createScriptURL: ownData };

/** The address of a chunk, which lies in the report's own folder. */
function ownData(name) {
  if (!/^[a-z0-9.-]+$/.test(name)) throw new TypeError(`${name} is no chunk of this report`);
  return `data/${name}.js`;
}

function loadChunk(name) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.onload = () => {
      script.remove();
      if (arrived.has(name)) resolve(arrived.get(name));
      else reject(new Error(`data/${name}.js does not hold what its name says.`));
      arrived.delete(name);
    };
    script.onerror = () => reject(new Error(`data/${name}.js cannot be read: the report is not whole. Write it again with probe report.`));
    script.src = addresses.createScriptURL(name);
    document.head.append(script);
  });
}

const hash = {
  read: () => location.hash.slice(1),
  write(text, replace) {
    history[replace ? "replaceState" : "pushState"](null, "", `#${text}`);
  },
  listen(callback) {
    addEventListener("popstate", callback);
    return () => removeEventListener("popstate", callback);
  },
};

mount(document.getElementById("report"), { load: loadChunk, file: (path) => path }, { router: hash, whole: true });

// The results: a grid of buttons, a dialog that enlarges one, and the export as a file.

import { at, clock, make, save } from "./dom.js";

const TITLES = { image: "Pictures", recording: "Recordings" };

let answer = {};
let results = [];
let query = "";
let shown = 0; // place of the result in the dialog

/** Show the results of a query. name: a description of the query, for the export. */
export function showResults(found, name) {
  answer = found;
  results = found.results;
  query = name;
  const kinds = [...new Set(results.map((entry) => entry.kind))]; // their cosines cannot be compared
  at("results").replaceChildren(...kinds.flatMap((kind) => [
    ...(kinds.length > 1 ? [make("h3", {}, TITLES[kind])] : []),
    make("ol", {}, ...results.map((entry, place) => (entry.kind === kind ? tile(entry, place) : null)).filter(Boolean)),
  ]));
  at("nothing").hidden = results.length > 0;
  at("found").hidden = false;
  for (const id of ["export-json", "export-csv"]) at(id).hidden = !results.length;
}

/** Remove all results. */
export function clearResults() {
  results = [];
  at("results").replaceChildren();
  at("found").hidden = true;
  if (at("dialog").open) at("dialog").close();
}

/** Connect the dialog and the export. onLike: called with a result to search for similar ones. */
export function connectResults(onLike) {
  at("dialog-close").addEventListener("click", () => at("dialog").close());
  at("dialog-before").addEventListener("click", () => enlarge(shown - 1));
  at("dialog-after").addEventListener("click", () => enlarge(shown + 1));
  at("dialog-copy").addEventListener("click", copyPath);
  at("dialog-like").addEventListener("click", () => {
    const entry = results[shown];
    at("dialog").close();
    onLike(entry);
  });
  at("dialog").addEventListener("keydown", (event) => {
    if (event.target.closest("audio")) return; // its own arrow keys
    const to = { ArrowLeft: shown - 1, ArrowRight: shown + 1, Home: 0, End: results.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    enlarge(to);
  });
  at("dialog").addEventListener("click", (event) => {
    if (event.target === at("dialog")) at("dialog").close(); // the area around it
  });
  at("dialog").addEventListener("close", () => {
    at("dialog-item").replaceChildren(); // stops a recording
    at("results").querySelectorAll(".hit")[shown]?.focus();
  });
  at("export-json").addEventListener("click", () => save("results.json", "application/json", json()));
  at("export-csv").addEventListener("click", () => save("results.csv", "text/csv", csv()));
}

/** Return folder and name of a result, without the time of a part of a recording. */
function parts(entry) {
  const id = entry.span ? entry.id.replace(/#t=[^#]*$/, "") : entry.id;
  const cut = id.lastIndexOf("/") + 1;
  return [id.slice(0, cut), id.slice(cut)];
}

const isRecording = (entry) => entry.kind === "recording";
const span = (entry) => (entry.span ? entry.span.map(clock).join(" – ") : "");
const described = (entry) => [`${isRecording(entry) ? "Recording" : "Picture"} ${parts(entry).join("")}`, span(entry)].filter(Boolean).join(", ");

function tile(entry, place) {
  const [folder, name] = parts(entry);
  const button = make(
    "button", { type: "button", class: "hit", title: described(entry), "aria-haspopup": "dialog" },
    picture(entry),
    make("span", { class: "rank" }, `${entry.rank}`),
    make("span", { class: "name" }, make("span", { class: "folder" }, folder), make("span", { class: "id" }, name)),
    make("span", { class: "when" }, span(entry)),
    score(entry),
  );
  button.addEventListener("click", () => enlarge(place));
  return make("li", {}, button);
}

function picture(entry) {
  if (isRecording(entry)) return make("span", { class: "none sound", "aria-hidden": "true" }, "♪");
  if (!entry.thumbnail) return make("span", { class: "none" }, "no thumbnail");
  const image = make("img", { src: entry.thumbnail, alt: described(entry), loading: "lazy" });
  image.addEventListener("error", () => image.replaceWith(make("span", { class: "none" }, "no thumbnail")));
  return image;
}

/** Return a cosine as a bar and a number. */
function score(entry) {
  const bar = make("i");
  bar.style.width = `${Math.max(0, Math.min(100, 100 * entry.cosine))}%`;
  return make("span", { class: "cosine", title: "cosine" }, make("span", { class: "track", "aria-hidden": "true" }, bar), make("span", { class: "time" }, entry.cosine.toFixed(3)));
}

function enlarge(place) {
  if (place < 0 || place >= results.length) return;
  shown = place;
  const entry = results[place];
  const [folder, name] = parts(entry);
  at("dialog-rank").textContent = `${entry.rank}`;
  at("dialog-count").textContent = ` of ${results.filter((other) => other.kind === entry.kind).length}`;
  at("dialog-folder").textContent = folder;
  at("dialog-name").textContent = name;
  at("dialog-score").replaceChildren(score(entry), make("span", { class: "when" }, span(entry)));
  at("dialog-same").hidden = !entry.duplicates?.length;
  at("dialog-same").textContent = `The same content: ${(entry.duplicates ?? []).join(", ")}`;
  at("dialog-copy").textContent = entry.file ? "Copy path" : "Copy name";
  at("dialog-note").textContent = "";
  at("dialog-item").replaceChildren(item(entry));
  at("dialog-before").disabled = place === 0;
  at("dialog-after").disabled = place === results.length - 1;
  if (!at("dialog").open) at("dialog").showModal();
  if (document.activeElement === document.body || document.activeElement.disabled) at("dialog-close").focus();
}

/** Return a large picture, or the player of a recording. */
function item(entry) {
  if (!entry.recording) return picture(entry);
  return make("audio", { src: entry.recording, controls: "", "aria-label": described(entry) });
}

async function copyPath() {
  const path = results[shown].file || results[shown].id;
  try {
    await navigator.clipboard.writeText(path);
    at("dialog-note").textContent = "Copied.";
  } catch {
    at("dialog-note").textContent = `The browser does not allow copying. Copy it here: ${path}`;
  }
}

// The formats are those of speechclip search --export.
const COLUMNS = ["query", "rank", "kind", "id", "cosine", "start", "end", "file", "duplicates", "duplicate_files"];
const BETWEEN = " | "; // the values of one cell

function json() {
  const shown = results.map(({ thumbnail, recording, ...entry }) => entry);
  const { peaks, ...rest } = answer;
  return `${JSON.stringify([{ ...rest, query, results: shown }], null, 2)}\n`;
}

function csv() {
  const quoted = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const rows = results.map((entry) => [
    query, `${entry.rank}`, entry.kind, entry.id, entry.cosine.toFixed(4), ...(entry.span ?? ["", ""]).map((end) => (end === "" ? "" : end.toFixed(3))),
    entry.file ?? "", entry.duplicates.join(BETWEEN), (entry.duplicate_files ?? []).join(BETWEEN),
  ]);
  return [COLUMNS, ...rows].map((row) => `${row.map(quoted).join(",")}\n`).join("");
}

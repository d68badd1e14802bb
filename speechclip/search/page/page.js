import { record } from "./recorder.js";

const at = (id) => document.getElementById(id);
const make = (tag, attributes = {}, ...inside) => {
  const node = document.createElement(tag);
  Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, value));
  node.append(...inside);
  return node;
};
const draw = (tag, attributes) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, value));
  return node;
};
const [WIDTH, WAVE, LANE, BAND] = [800, 80, 16, 12]; // of the timeline, in its own units

let limits = { max_seconds: 30, max_bytes: 20e6 };
let recording = null;
let playTo = null; // seconds at which a keyword that plays ends

const say = (text, wrong = false) => {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
};

async function ask(blob) {
  if (blob.size > limits.max_bytes) {
    return say(`This file has ${(blob.size / 1e6).toFixed(1)} MB, ${limits.max_bytes / 1e6} MB are the most.`, true);
  }
  say("Searching …");
  document.body.setAttribute("aria-busy", "true");
  try {
    const response = await fetch("search", { method: "POST", body: blob, headers: { "Content-Type": "audio/*" } });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    show(answer, blob);
    say(`${answer.results.length} images in ${Math.round(answer.encode_ms + answer.search_ms)} ms`);
  } catch (error) {
    say(`No answer: ${error.message}`, true);
  } finally {
    document.body.removeAttribute("aria-busy");
  }
}

function show(answer, blob) {
  if (at("audio").src) URL.revokeObjectURL(at("audio").src);
  at("audio").src = URL.createObjectURL(blob);
  const words = answer.keywords ?? [];
  at("timeline").replaceChildren(timeline(answer.peaks, words, answer.seconds));
  at("keywords").replaceChildren(...words.map(keyword));
  at("no-keywords").hidden = words.length > 0;
  at("no-keywords").textContent = answer.keywords ? "No keywords in it." : `A ${limits.head} head hears no keywords.`;
  at("results").replaceChildren(...answer.results.map(result));
  at("heard").hidden = at("found").hidden = false;
}

/** Waveform with the stretch of each keyword below it, in as few lanes as hold them without overlap. */
function timeline(peaks, words, seconds) {
  const ends = [];
  const lanes = words.map((word) => {
    const free = ends.findIndex((end) => end <= word.start);
    const lane = free < 0 ? ends.length : free;
    ends[lane] = word.end;
    return lane;
  });
  const height = WAVE + LANE * ends.length;
  const label = `Waveform of ${seconds.toFixed(1)} s with ${words.length} keywords`;
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  svg.style.height = `${height}px`;
  const step = WIDTH / peaks.length;
  const path = peaks.map((peak, i) => {
    const half = Math.max(0.5, (peak * WAVE) / 2 - 2);
    return `M${((i + 0.5) * step).toFixed(1)} ${(WAVE / 2 - half).toFixed(1)}v${(2 * half).toFixed(1)}`;
  });
  svg.append(draw("path", { d: path.join(""), class: "wave" }));
  words.forEach((word, i) => {
    const x = (word.start / seconds) * WIDTH;
    const width = Math.max(2, ((word.end - word.start) / seconds) * WIDTH);
    const band = draw("rect", { x, y: WAVE + LANE * lanes[i], width, height: BAND, rx: 2, class: "band", "data-word": i });
    band.addEventListener("click", () => play(word, i));
    svg.append(draw("rect", { x, y: 0, width, height: WAVE, class: "stretch", "data-word": i }), band);
  });
  return svg;
}

function keyword(word, i) {
  const [best, ...others] = word.subwords;
  const button = make(
    "button", { type: "button", title: "Play this stretch" },
    make("span", { class: "word" }, best),
    make("span", { class: "quiet" }, ` ${word.cosines[0].toFixed(2)}`),
    make("span", { class: "others quiet" }, others.join(", ")),
    make("span", { class: "time" }, `${word.start.toFixed(2)}–${word.end.toFixed(2)} s`),
  );
  button.addEventListener("click", () => play(word, i));
  button.addEventListener("mouseenter", () => mark(i));
  button.addEventListener("focus", () => mark(i));
  return make("li", {}, button);
}

function mark(i) {
  document.querySelectorAll("[data-word]").forEach((node) => node.classList.toggle("marked", node.dataset.word === `${i}`));
}

function play(word, i) {
  mark(i);
  playTo = word.end;
  at("audio").currentTime = word.start;
  at("audio").play().catch((error) => say(`This browser cannot play it: ${error.message}`, true));
}

function result(entry) {
  const caption = make(
    "figcaption", {},
    make("span", { class: "rank" }, `${entry.rank}`), make("span", { class: "id" }, entry.id),
    make("span", { class: "time" }, entry.cosine.toFixed(3)),
  );
  const picture = entry.thumbnail
    ? make("img", { src: entry.thumbnail, alt: `Image ${entry.id}`, loading: "lazy" })
    : make("div", { class: "none" }, "no thumbnail");
  return make("li", {}, make("figure", {}, picture, caption));
}

async function toggleRecording() {
  if (recording) return recording.stop();
  at("record").disabled = true; // while the browser asks for the microphone: a second click would record twice
  try {
    recording = await record(limits.max_seconds);
  } catch (error) {
    return say(`No microphone: ${error.message}`, true);
  } finally {
    at("record").disabled = false;
    at("record").focus(); // which a disabled button loses
  }
  showRecording(true);
  const started = performance.now();
  const clock = setInterval(() => say(`Listening … ${((performance.now() - started) / 1000).toFixed(0)} s`), 250);
  try {
    const wav = await recording.wav;
    clearInterval(clock);
    await ask(wav);
  } catch (error) {
    say(`Nothing recorded: ${error.message}`, true);
  } finally {
    clearInterval(clock);
    recording = null;
    showRecording(false);
  }
}

function showRecording(on) {
  at("record").setAttribute("aria-pressed", `${on}`);
  at("record-text").textContent = on ? "Stop and search" : "Speak";
}

at("record").addEventListener("click", toggleRecording);
at("file").addEventListener("change", () => {
  if (at("file").files.length) ask(at("file").files[0]);
  at("file").value = ""; // the same file may be chosen again
});
at("audio").addEventListener("timeupdate", () => {
  if (playTo !== null && at("audio").currentTime >= playTo) {
    at("audio").pause();
    playTo = null;
  }
});
at("drop").addEventListener("dragover", (event) => event.preventDefault());
at("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) ask(event.dataTransfer.files[0]);
});
limits = await (await fetch("info")).json();
at("about").textContent = `Say what should be in the picture: ${limits.images.toLocaleString("en")} images, ${limits.head} head.`;
at("limits").textContent = `At most ${limits.max_seconds} s and ${limits.max_bytes / 1e6} MB. Recordings stay on this machine and are not kept.`;
document.body.dataset.ready = "true";

import { record, toWav } from "./recorder.js";

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
const [WIDTH, WAVE, LANE, BAND] = [800, 80, 16, 12]; // of the timeline, in SVG units
const RETRY_SECONDS = 60; // during which a query is sent again to a busy server
// The first bytes of the formats that the server reads: wav, flac, ogg (also opus), mp3.
const SERVER_FORMATS = ["RIFF", "fLaC", "OggS", "ID3", "\xff\xfb", "\xff\xf3", "\xff\xf2"];

let limits = {}; // of the server, from /info
let recording = null;
let playTo = null; // end in seconds of the keyword that plays

const showStatus = (text, wrong = false) => {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
};

async function ask(file) {
  if (file.size > limits.max_bytes) {
    hideAnswer();
    return showStatus(`This file has ${(file.size / 1e6).toFixed(1)} MB. The limit is ${limits.max_bytes / 1e6} MB.`, true);
  }
  showStatus("Searching …");
  document.body.setAttribute("aria-busy", "true");
  try {
    const blob = await readable(file);
    const answer = await send(blob);
    show(answer, blob);
    showStatus(`${answer.results.length} images in ${Math.round(answer.encode_ms + answer.search_ms)} ms`);
  } catch (error) {
    hideAnswer();
    showStatus(`No answer: ${error.message}`, true);
  } finally {
    document.body.removeAttribute("aria-busy");
  }
}

/** Return a wav of a file whose format the server does not read. Any other file is returned as it is. */
async function readable(file) {
  const start = String.fromCharCode(...new Uint8Array(await file.slice(0, 4).arrayBuffer()));
  if (SERVER_FORMATS.some((format) => start.startsWith(format))) return file;
  let wav;
  try {
    wav = await toWav(file);
  } catch {
    return file; // the answer of the server names the problem
  }
  if (wav.size > limits.max_bytes) throw new Error(`this recording is too long. The limit is ${limits.max_seconds} s.`);
  return wav;
}

/** Send a recording and return the answer. If the server is busy, send it again after the time that the server asks for. */
async function send(blob) {
  const end = performance.now() + 1000 * RETRY_SECONDS;
  for (;;) {
    let response;
    try {
      response = await fetch("search", { method: "POST", body: blob, headers: { "Content-Type": "audio/*" } });
    } catch {
      throw new Error("the server cannot be reached. Is speechclip serve still running?");
    }
    if (response.status === 503 && performance.now() < end) {
      showStatus("Waiting for other queries …");
      await new Promise((resolve) => setTimeout(resolve, 1000 * (Number(response.headers.get("Retry-After")) || 1)));
      continue;
    }
    const text = await response.text();
    if (response.ok) return JSON.parse(text);
    let reason = `the server failed (status ${response.status}). Its log has the reason.`;
    try {
      reason = JSON.parse(text).error;
    } catch {
      // a failure inside the server is plain text
    }
    throw new Error(reason);
  }
}

function hideAnswer() {
  at("audio").pause();
  at("heard").hidden = at("found").hidden = true;
}

function show(answer, blob) {
  if (at("audio").src) URL.revokeObjectURL(at("audio").src);
  at("audio").src = URL.createObjectURL(blob);
  const words = answer.keywords ?? [];
  at("timeline").replaceChildren(timeline(answer.peaks, words, answer.seconds));
  at("keywords").replaceChildren(...words.map(keyword));
  at("no-keywords").hidden = words.length > 0;
  at("no-keywords").textContent = answer.keywords ? "No keywords were found." : "This model finds no keywords.";
  at("results").replaceChildren(...answer.results.map(result));
  at("heard").hidden = at("found").hidden = false;
}

/** Return the waveform, and below it a bar for each keyword. Keywords that overlap in time get different lanes. */
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
    "button", { type: "button", title: "Play this part" },
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
  at("audio").play().catch((error) => showStatus(`The browser cannot play the recording: ${error.message}`, true));
}

function result(entry) {
  const caption = make(
    "figcaption", {},
    make("span", { class: "rank" }, `${entry.rank}`), make("span", { class: "id", title: entry.id }, entry.id),
    make("span", { class: "time" }, entry.cosine.toFixed(3)),
  );
  const picture = entry.thumbnail
    ? make("img", { src: entry.thumbnail, alt: `Image ${entry.id}`, loading: "lazy" })
    : make("div", { class: "none" }, "no thumbnail");
  return make("li", {}, make("figure", {}, picture, caption));
}

async function toggleRecording() {
  if (recording) return recording.stop();
  at("record").disabled = true; // a second click, while the browser asks for permission, would record twice
  try {
    recording = await record(limits.max_seconds);
  } catch (error) {
    hideAnswer();
    return showStatus(`No microphone: ${error.message}`, true);
  } finally {
    at("record").disabled = false;
    at("record").focus(); // a disabled button loses the focus
  }
  showRecording(true);
  const started = performance.now();
  const clock = setInterval(() => showStatus(`Recording … ${((performance.now() - started) / 1000).toFixed(0)} s`), 250);
  try {
    const wav = await recording.wav;
    clearInterval(clock);
    await ask(wav);
  } catch (error) {
    hideAnswer();
    showStatus(`Nothing was recorded: ${error.message}`, true);
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
at("about").textContent = `Describe a picture in your own words. ${limits.images.toLocaleString("en")} images are searched.`;
at("limits").textContent = `${limits.min_seconds} to ${limits.max_seconds} s, at most ${limits.max_bytes / 1e6} MB. Recordings are not kept.`;
document.body.dataset.ready = "true";

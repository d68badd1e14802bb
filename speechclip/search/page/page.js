// The search page: takes a query from the microphone, the keyboard, a file or a result, and shows the answer.

import { at, make } from "./dom.js";
import { clearRecording, connectPlayer, showRecording } from "./player.js";
import { record, toWav } from "./recorder.js";
import { clearResults, connectResults, showResults } from "./results.js";

const RETRY_SECONDS = 60; // during which a query is sent again to a busy server
// The first bytes of the formats that the server reads: wav, flac, ogg (also opus), mp3.
const SERVER_FORMATS = ["RIFF", "fLaC", "OggS", "ID3", "\xff\xfb", "\xff\xf3", "\xff\xf2"];
const PICTURE_NAMES = /\.(avif|bmp|gif|jfif|jpe?g|png|tiff?|webp|heic)$/i;
const MICROPHONE = {
  NotAllowedError: "The browser does not allow the microphone. Allow it next to the address of the page, or choose a file.",
  NotFoundError: "No microphone was found. Connect one, or choose a file.",
  NotReadableError: "Another program uses the microphone. Close it, or choose a file.",
};

let limits = {}; // of the server, from /info
let recording = null;
let pending = null; // aborts the query that the server answers

function showStatus(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
}

/** Remove the last answer, and explain why the next one is missing. */
function fail(text) {
  clearAnswer();
  showStatus(text, true);
}

function clearAnswer() {
  clearRecording();
  clearResults();
  at("asked").replaceChildren();
  at("heard").hidden = at("asked").hidden = true;
}

/**
 * Search, and show the answer.
 *
 * query: {type, body, name}; body is a blob or text. prepare: returns the query, so that its errors are shown, too.
 */
async function search(prepare, show) {
  pending?.abort();
  const abort = (pending = new AbortController());
  showStatus("Searching …");
  document.body.setAttribute("aria-busy", "true");
  try {
    const query = await prepare();
    const answer = await send(query, abort.signal);
    clearAnswer();
    showResults(answer, query.name);
    show(answer, query);
    showStatus(`${answer.results.length} results in ${Math.round(answer.encode_ms + answer.search_ms)} ms`);
  } catch (error) {
    if (abort !== pending) return; // a newer query
    if (abort.signal.aborted) showStatus("Cancelled.");
    else fail(error.message);
  } finally {
    if (abort === pending) {
      pending = null;
      document.body.removeAttribute("aria-busy");
    }
  }
}

function askText(text) {
  search(() => ({ type: "application/json", body: JSON.stringify({ text }), name: text }), () => showAsked(make("q", {}, text)));
}

function askLike(entry) {
  const picture = entry.thumbnail && make("img", { src: entry.thumbnail, alt: "" });
  search(
    () => ({ type: "application/json", body: JSON.stringify({ like: entry.id }), name: `like ${entry.id}` }),
    () => {
      showAsked(...(picture ? [picture] : []), make("span", {}, "Similar to ", make("b", {}, entry.id)));
      at("results").querySelector("button")?.focus({ preventScroll: true }); // the result that had it is gone
      window.scrollTo({ top: 0 });
    },
  );
}

function askFile(file) {
  if (file.size > limits.max_bytes) {
    return fail(`This file has ${(file.size / 1e6).toFixed(1)} MB. The limit is ${limits.max_bytes / 1e6} MB. Choose a smaller one.`);
  }
  const isPicture = file.type.startsWith("image/") || PICTURE_NAMES.test(file.name ?? "");
  if (isPicture && !limits.pictures) return fail("This index can only be searched with recordings. Choose a recording.");
  const name = file.name ?? "recorded query";
  if (isPicture) {
    search(() => ({ type: "image/*", body: file, name }), () => {
      const address = URL.createObjectURL(file);
      const image = make("img", { src: address, alt: "" });
      image.addEventListener("error", () => image.remove()); // a format that only the server reads
      image.addEventListener("load", () => URL.revokeObjectURL(address));
      showAsked(image, make("b", {}, name));
    });
    return;
  }
  search(async () => ({ type: "audio/*", body: await readable(file), name }), showSpoken);
}

function showSpoken(answer, query) {
  showRecording(answer, query.body);
  at("heard").hidden = false;
  at("no-keywords").hidden = answer.keywords?.length > 0;
  at("no-keywords").textContent = answer.keywords ? "No keywords were found." : "This model finds no keywords.";
}

function showAsked(...nodes) {
  at("asked").replaceChildren(...nodes);
  at("no-keywords").hidden = true;
  at("heard").hidden = at("asked").hidden = false;
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
  if (wav.size > limits.max_bytes) throw new Error(`This recording is too long. The limit is ${limits.max_seconds} s. Choose a shorter one.`);
  return wav;
}

/** Send a query and return the answer. If the server is busy, send it again after the time that the server asks for. */
async function send(query, signal) {
  const end = performance.now() + 1000 * RETRY_SECONDS;
  for (;;) {
    let response;
    try {
      response = await fetch("search", { method: "POST", body: query.body, headers: { "Content-Type": query.type }, signal });
    } catch (error) {
      if (signal.aborted) throw error;
      throw new Error("The server cannot be reached. Start speechclip serve again, and reload this page.");
    }
    if (response.status === 503 && performance.now() < end) {
      showStatus("Waiting for other queries …");
      await new Promise((resolve) => setTimeout(resolve, 1000 * (Number(response.headers.get("Retry-After")) || 1)));
      signal.throwIfAborted();
      continue;
    }
    const text = await response.text();
    if (response.ok) return JSON.parse(text);
    let reason = `The server failed (status ${response.status}). Its log has the reason.`;
    try {
      reason = JSON.parse(text).error;
    } catch {
      // a failure inside the server is plain text
    }
    throw new Error(reason[0].toUpperCase() + reason.slice(1));
  }
}

async function toggleRecording() {
  if (recording) return recording.stop();
  at("record").disabled = true; // a second click, while the browser asks for permission, would record twice
  try {
    recording = await record(limits.max_seconds, showLevel);
  } catch (error) {
    return fail(MICROPHONE[error.name] ?? error.message);
  } finally {
    at("record").disabled = false;
    at("record").focus(); // a disabled button loses the focus
  }
  clearRecording(); // the microphone must not record it
  showRecordingState(true);
  const end = performance.now() + 1000 * limits.max_seconds;
  const showTime = () => { at("remaining").textContent = `${Math.max(0, Math.ceil((end - performance.now()) / 1000))} s left`; };
  showTime();
  const timer = setInterval(showTime, 250);
  try {
    const wav = await recording.wav;
    if (wav) askFile(wav);
    else {
      clearAnswer();
      showStatus("Cancelled.");
    }
  } catch (error) {
    fail(`Nothing was recorded (${error.message}). Try again, or choose a file.`);
  } finally {
    clearInterval(timer);
    recording = null;
    showRecordingState(false);
  }
}

function showRecordingState(on) {
  at("record").setAttribute("aria-pressed", `${on}`);
  at("record-text").textContent = on ? "Stop and search" : "Speak";
  at("recording").hidden = !on;
  if (on) showStatus("Recording …");
}

function showLevel(level) {
  at("level").setAttribute("aria-valuenow", `${Math.round(100 * level)}`);
  at("level").firstElementChild.style.width = `${100 * level}%`;
}

function cancel() {
  if (recording) recording.cancel();
  else pending?.abort();
}

/** Accept files that are dropped anywhere on the page. */
function connectDrops() {
  let inside = 0; // elements that the pointer entered and did not leave
  const show = (on) => { at("drop").hidden = !on; };
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragenter", (event) => {
    if (!hasFiles(event)) return;
    inside += 1;
    show(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (hasFiles(event)) show((inside -= 1) > 0);
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    inside = 0;
    show(false);
    if (event.dataTransfer.files.length) askFile(event.dataTransfer.files[0]);
  });
}

function showLimits() {
  const counted = [[limits.images, "picture"], [limits.recordings, "recording"]].filter(([count]) => count);
  const searched = counted.map(([count, name]) => `${count.toLocaleString("en")} ${name}${count === 1 ? "" : "s"}`).join(" and ");
  at("about").textContent = `Describe a picture in your own words. ${searched} can be searched.`;
  at("limits").textContent = `A recording has ${limits.min_seconds} to ${limits.max_seconds} s and at most ${limits.max_bytes / 1e6} MB. It is not kept.`;
  at("typed").hidden = !limits.text;
  if (limits.pictures) {
    at("file").accept = `${at("file").accept},image/*`;
    at("upload-text").textContent = "Choose or drop a recording or a picture";
    at("drop-text").textContent = "Drop a recording or a picture to search with it";
  }
}

at("record").addEventListener("click", toggleRecording);
at("cancel").addEventListener("click", cancel);
at("typed").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("text").value.trim();
  if (text) askText(text);
  else fail("The text is empty. Type some words.");
});
at("file").addEventListener("change", () => {
  if (at("file").files.length) askFile(at("file").files[0]);
  at("file").value = ""; // the same file may be chosen again
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !at("dialog").open) cancel();
});
connectPlayer((text) => showStatus(text, true));
connectResults(askLike);
connectDrops();
limits = await (await fetch("info")).json();
showLimits();
document.body.dataset.ready = "true";

// The player of a recorded query: its waveform with a playhead, and a band for each keyword.

import { at, clock, draw, make } from "./dom.js";

const [WIDTH, WAVE] = [800, 80]; // of the waveform, in SVG units
const STEP = 0.5; // seconds of an arrow key
const GOLDEN_ANGLE = 137.5; // degrees between the hues of two keywords: no two of them are equal

let recording = { seconds: 0, words: [] };
let playTo = null; // end in seconds of the keyword that plays
let onFailure = () => {};

/** Show a recording with its keywords. */
export function showRecording(answer, blob) {
  clearRecording();
  recording = { seconds: answer.seconds, words: answer.keywords ?? [] };
  at("audio").src = URL.createObjectURL(blob);
  at("timeline").replaceChildren(waveform(answer.peaks), ...bands(recording.words));
  at("keywords").replaceChildren(...recording.words.map(keyword));
  at("player").hidden = false;
  movePlayhead();
}

/** Stop, and forget the recording. */
export function clearRecording() {
  at("audio").pause();
  if (at("audio").src) URL.revokeObjectURL(at("audio").src);
  at("audio").removeAttribute("src");
  playTo = null;
  recording = { seconds: 0, words: [] };
  at("player").hidden = true;
  at("keywords").replaceChildren();
  at("timeline").replaceChildren();
}

/** Connect the player. failed: called with a message if the browser cannot play the recording. */
export function connectPlayer(failed) {
  onFailure = failed;
  const audio = at("audio");
  at("play").addEventListener("click", toggle);
  for (const name of ["play", "pause", "ended"]) audio.addEventListener(name, showState);
  for (const name of ["timeupdate", "seeked"]) audio.addEventListener(name, movePlayhead);
  document.addEventListener("keydown", (event) => {
    const inControl = event.target.closest("input, button, dialog, audio, a");
    if (event.key !== " " || inControl || at("heard").hidden || at("player").hidden) return;
    event.preventDefault();
    toggle();
  });
}

/** Play, or pause. */
function toggle() {
  const audio = at("audio");
  if (!audio.paused) return audio.pause();
  playTo = null;
  start();
}

function start() {
  at("audio").play().catch((error) => {
    if (error.name !== "AbortError") onFailure(`The browser cannot play this recording (${error.message}). Its results are right.`);
  });
}

function showState() {
  const playing = !at("audio").paused;
  at("play").setAttribute("aria-label", playing ? "Pause" : "Play");
  at("play").firstElementChild.textContent = playing ? "❚❚" : "▶";
  if (playing) follow();
}

function follow() {
  if (at("audio").paused) return;
  movePlayhead();
  requestAnimationFrame(follow);
}

function movePlayhead() {
  const audio = at("audio");
  if (playTo !== null && audio.currentTime >= playTo) {
    audio.pause();
    playTo = null;
  }
  const wave = at("wave");
  if (!wave || !recording.seconds) return;
  const part = Math.min(1, audio.currentTime / recording.seconds);
  at("playhead").style.left = `${100 * part}%`;
  wave.setAttribute("aria-valuenow", audio.currentTime.toFixed(2));
  wave.setAttribute("aria-valuetext", `${clock(audio.currentTime)} of ${clock(recording.seconds)}`);
}

function seek(seconds) {
  playTo = null;
  at("audio").currentTime = Math.max(0, Math.min(recording.seconds, seconds));
}

/** Return the waveform. It is a slider: a click or an arrow key moves the playhead, the space key plays. */
function waveform(peaks) {
  const wave = make("div", {
    id: "wave", role: "slider", tabindex: "0", "aria-label": "Waveform of the query", "aria-valuemin": "0",
    "aria-valuemax": recording.seconds.toFixed(2), title: "Click: move. Space: play.",
  });
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${WAVE}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const step = WIDTH / peaks.length;
  const path = peaks.map((peak, i) => {
    const half = Math.max(0.5, (peak * WAVE) / 2 - 2);
    return `M${((i + 0.5) * step).toFixed(1)} ${(WAVE / 2 - half).toFixed(1)}v${(2 * half).toFixed(1)}`;
  });
  svg.append(draw("path", { d: path.join(""), class: "wave" }));
  wave.append(...recording.words.map((word, i) => stretch(word, i)), svg, make("i", { id: "playhead" }));
  wave.addEventListener("click", (event) => {
    const box = wave.getBoundingClientRect();
    seek((recording.seconds * (event.clientX - box.left)) / box.width);
  });
  wave.addEventListener("keydown", (event) => {
    const now = at("audio").currentTime;
    const to = { ArrowLeft: now - STEP, ArrowRight: now + STEP, Home: 0, End: recording.seconds }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    seek(to);
  });
  return wave;
}

/** Place a node at the time of a word, in the colour of the word. */
function atTime(node, word, i) {
  node.dataset.word = i;
  node.style.left = `${(100 * word.start) / recording.seconds}%`;
  node.style.width = `${Math.max(0.4, (100 * (Math.min(word.end, recording.seconds) - word.start)) / recording.seconds)}%`;
  return coloured(node, i);
}

function coloured(node, i) {
  node.style.setProperty("--hue", `${(210 + GOLDEN_ANGLE * i) % 360}`);
  return node;
}

function stretch(word, i) {
  return atTime(make("i", { class: "stretch" }), word, i);
}

/** Return rows of bands, with the word on each. Keywords that overlap in time get different rows. */
function bands(words) {
  const rows = [];
  const ends = [];
  words.forEach((word, i) => {
    let row = ends.findIndex((end) => end <= word.start);
    if (row < 0) row = ends.length;
    ends[row] = word.end;
    rows[row] ??= make("div", { class: "lane", "aria-hidden": "true" }); // the list has the same for the keyboard
    const band = atTime(make("span", { class: "band", title: `${word.subwords[0]}, ${times(word)}` }, word.subwords[0]), word, i);
    band.addEventListener("click", () => play(i));
    rows[row].append(band);
  });
  return rows;
}

const times = (word) => `${word.start.toFixed(2)}–${word.end.toFixed(2)} s`;

function keyword(word, i) {
  const [best, ...others] = word.subwords;
  const button = make(
    "button", { type: "button", title: "Play this part" },
    make("i", { class: "swatch", "aria-hidden": "true" }),
    make("span", { class: "word" }, best),
    make("span", { class: "quiet" }, word.cosines[0].toFixed(2)),
    make("span", { class: "time" }, times(word)),
    make("span", { class: "others quiet" }, others.join(", ")),
  );
  coloured(button, i);
  button.addEventListener("click", () => play(i));
  button.addEventListener("mouseenter", () => mark(i));
  button.addEventListener("focus", () => mark(i));
  return make("li", {}, button);
}

function mark(i) {
  document.querySelectorAll("[data-word]").forEach((node) => node.classList.toggle("marked", node.dataset.word === `${i}`));
}

/** Play the part of a keyword. */
function play(i) {
  mark(i);
  seek(recording.words[i].start);
  playTo = recording.words[i].end;
  start();
}

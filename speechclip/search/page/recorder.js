// Converts the microphone, and audio files of formats that the server does not read, to 16 kHz mono wav.

export const RATE = 16000;
const LEVEL_MS = 50; // between two values of the level
const QUIET_DB = -60; // shown as an empty level meter

/** Return a 16-bit wav of mono samples. */
export function encodeWav(samples) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, word) => [...word].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, RATE, true);
  view.setUint32(28, 2 * RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, value)) * 32767, true));
  return new Blob([view], { type: "audio/wav" });
}

/** Return a wav of any audio that the browser can decode (webm, mp4, m4a, ...). */
export async function toWav(blob) {
  const context = new OfflineAudioContext(1, 1, RATE); // decodes at its own rate
  const decoded = await context.decodeAudioData(await blob.arrayBuffer());
  const mix = new OfflineAudioContext(1, Math.max(1, Math.round(decoded.duration * RATE)), RATE);
  const source = mix.createBufferSource();
  source.buffer = decoded;
  source.connect(mix.destination);
  source.start();
  return encodeWav((await mix.startRendering()).getChannelData(0));
}

/** Call a function with the level of a stream, 0 to 1, until the returned function is called. */
function watchLevel(stream, onLevel) {
  const context = new AudioContext();
  const analyser = context.createAnalyser();
  context.createMediaStreamSource(stream).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  const timer = setInterval(() => {
    analyser.getFloatTimeDomainData(samples);
    const power = samples.reduce((sum, value) => sum + value * value, 0) / samples.length;
    onLevel(Math.max(0, Math.min(1, 1 - (10 * Math.log10(power + 1e-12)) / QUIET_DB)));
  }, LEVEL_MS);
  return () => {
    clearInterval(timer);
    context.close();
  };
}

/**
 * Start to record.
 *
 * Returns {stop, cancel, wav}. wav is a promise: a blob, after stop was called or the time is over; null, after cancel.
 */
export async function record(maxSeconds, onLevel) {
  if (!navigator.mediaDevices) {
    throw new Error("The browser allows the microphone only for https and for pages of this machine. Open the page as localhost, or choose a file.");
  }
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const recorder = new MediaRecorder(stream);
  const parts = [];
  let cancelled = false;
  recorder.ondataavailable = (event) => parts.push(event.data);
  const stop = () => recorder.state === "inactive" || recorder.stop();
  const cancel = () => {
    cancelled = true;
    stop();
  };
  const timer = setTimeout(stop, 1000 * maxSeconds - 200);
  const stopLevel = watchLevel(stream, onLevel);
  const wav = new Promise((resolve, reject) => {
    recorder.onstop = () => {
      clearTimeout(timer);
      stopLevel();
      stream.getTracks().forEach((track) => track.stop());
      if (cancelled) resolve(null);
      else toWav(new Blob(parts, { type: recorder.mimeType })).then(resolve, reject);
    };
    recorder.onerror = (event) => reject(event.error);
  });
  recorder.start();
  return { stop, cancel, wav };
}

"use strict";
(() => {
  const parse = (id) => JSON.parse(document.getElementById(id).textContent || "null");
  const data = parse("data");
  let store = null;
  const media = () => (store ??= parse("media"));
  const COLOURS = ["#4aa8ff", "#ffb000", "#2ee6a8", "#ff7a3d", "#d78cff", "#ffe14d", "#ff6fa5", "#9be3ff"];
  const create = (tag, properties = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name.startsWith("aria-") || name === "role") node.setAttribute(name, value);
      else if (name === "style") node.style.cssText = value;
      else node[name] = value;
    }
    node.append(...children);
    return node;
  };
  const shape = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  // Images are loaded when they are near the visible part of the page.
  const fill = (node) => {
    node.src = media().images[node.dataset.image];
  };
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { near.unobserve(entry.target); fill(entry.target); }
  }, { rootMargin: "400px" });
  const observe = (root) => root.querySelectorAll("[data-image]").forEach((node) => near.observe(node));
  observe(document);
  document.addEventListener("play", (event) => {
    [...document.querySelectorAll("audio"), player].forEach((other) => { if (other !== event.target) other.pause(); });
  }, true);

  // One player serves all small play buttons of the lists.
  const player = new Audio();
  let playing = null;
  const showPlaying = () => {
    document.querySelectorAll(".play[aria-pressed=true]").forEach((button) => button.setAttribute("aria-pressed", "false"));
    if (playing && !player.paused) playing.setAttribute("aria-pressed", "true");
  };
  for (const name of ["play", "pause", "ended"]) player.addEventListener(name, showPlaying);
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".play[data-audio]");
    if (!button) return;
    if (button === playing && !player.paused) { player.pause(); return; }
    document.querySelectorAll("audio").forEach((other) => other.pause());
    if (button !== playing) player.src = media().audio[button.dataset.audio];
    playing = button;
    player.play().catch(() => showPlaying());
  });

  // The navigation marks the section at the top of the window.
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.getAttribute("href").slice(1), link]));
  const markSection = () => {
    const sections = [...document.querySelectorAll("main > section")];
    const atEnd = window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 2;
    const passed = sections.filter((section) => section.getBoundingClientRect().top < 120);
    const now = atEnd && window.scrollY ? sections.at(-1) : passed.at(-1) ?? sections[0];
    for (const [id, link] of links) {
      if (id !== now.id) link.removeAttribute("aria-current");
      else if (!link.hasAttribute("aria-current")) {
        link.setAttribute("aria-current", "true");
        const bar = link.parentElement;
        bar.scrollLeft = link.offsetLeft - bar.offsetLeft - (bar.clientWidth - link.offsetWidth) / 2;
      }
    }
  };
  document.addEventListener("scroll", markSection, { passive: true });
  window.addEventListener("resize", markSection);
  markSection();

  if (!data || !document.getElementById("list")) return;
  const { utterances, images } = data;
  const list = document.getElementById("list"), panel = document.getElementById("panel");
  const filter = document.getElementById("filter"), order = document.getElementById("order");
  const hasAudio = (place) => String(place) in media().audio;
  const empty = document.getElementById("empty");
  let shown = [], chosen = -1, rows = [];

  // ---- the list -------------------------------------------------------------------------------------------------
  const ORDERS = {
    listed: (a, b) => a - b,
    best: (a, b) => utterances[a].rank - utterances[b].rank || a - b,
    worst: (a, b) => utterances[b].rank - utterances[a].rank || a - b,
    audio: (a, b) => hasAudio(b) - hasAudio(a) || a - b,
  };
  const drawList = () => {
    const wanted = filter.value.trim().toLowerCase();
    shown = utterances.map((_, place) => place).filter((place) =>
      !wanted || utterances[place].caption.toLowerCase().includes(wanted) || utterances[place].id.toLowerCase().includes(wanted));
    shown.sort(ORDERS[order.value]);
    rows = shown.map((place) => {
      const item = utterances[place];
      const row = create("li", { id: `utterance-${place}`, role: "option", "aria-selected": String(place === chosen) },
        create("small", {}, create("span", { textContent: item.id }), create("span", { textContent: `rank ${item.rank}` })),
        create("span", { className: "said", textContent: item.caption }));
      // The keyboard plays with the space key: a listbox has no buttons inside.
      if (hasAudio(place)) row.append(create("span", { className: "play", title: "Play (space key)", "aria-hidden": "true" }));
      row.dataset.place = place;
      return row;
    });
    list.replaceChildren(...rows);
    document.getElementById("count").textContent = `${shown.length} shown`;
    empty.hidden = shown.length > 0;
  };
  const mark = (place) => {
    const before = document.getElementById(`utterance-${chosen}`);
    if (before) before.setAttribute("aria-selected", "false");
    chosen = place;
    const now = document.getElementById(`utterance-${place}`);
    if (!now) { list.removeAttribute("aria-activedescendant"); return; }
    now.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", now.id);
    const top = now.offsetTop, bottom = top + now.offsetHeight;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
  };
  const choose = (place) => { mark(place); drawPanel(place); drawMap(); };
  const open = (place) => {
    if (!shown.includes(place)) { filter.value = ""; drawList(); }
    choose(place);
    document.getElementById("utterances").scrollIntoView();
    list.focus({ preventScroll: true });
  };
  list.addEventListener("click", (event) => {
    const row = event.target.closest("li");
    if (!row) return;
    const place = Number(row.dataset.place);
    if (place !== chosen) choose(place);
    if (!event.target.closest(".play")) return;
    const audio = panel.querySelector("audio");
    audio.paused ? audio.play() : audio.pause();
  });
  list.addEventListener("keydown", (event) => {
    const at = shown.indexOf(chosen), last = shown.length - 1;
    const next = { ArrowDown: Math.min(last, at + 1), ArrowUp: Math.max(0, at - 1), Home: 0, End: last,
      PageDown: Math.min(last, at + 8), PageUp: Math.max(0, at - 8) }[event.key];
    if (next !== undefined && last >= 0) { event.preventDefault(); choose(shown[next]); }
    else if (event.key === " ") {
      const audio = panel.querySelector("audio");
      if (audio) { event.preventDefault(); audio.paused ? audio.play() : audio.pause(); }
    }
  });
  const showInList = () => {  // the row of the utterance that plays
    const audio = panel.querySelector("audio");
    rows.forEach((row) => row.classList.toggle("playing", Number(row.dataset.place) === chosen && Boolean(audio) && !audio.paused));
  };
  filter.addEventListener("input", drawList);
  order.addEventListener("change", drawList);
  document.getElementById("clear").addEventListener("click", () => { filter.value = ""; drawList(); filter.focus(); });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-open]");
    if (button) open(Number(button.dataset.open));
  });

  // ---- the panel of an utterance --------------------------------------------------------------------------------
  const track = (name, lane) => create("div", { className: "track" }, create("span", { className: "name", textContent: name }), lane);
  const waveform = (item) => {
    const levels = bytes(item.envelope), lane = create("div", { className: "lane wave" });
    const svg = shape("svg", { viewBox: `0 -1 ${levels.length} 2`, preserveAspectRatio: "none", role: "img", "aria-label": "Waveform" });
    let path = "";
    levels.forEach((level, at) => { path += `M${at + 0.5} ${-level / 255}V${Math.max(level / 255, 0.01)}`; });
    svg.append(shape("path", { d: path, stroke: "var(--muted)", "stroke-width": 0.8, fill: "none" }));
    lane.append(svg);
    return lane;
  };
  const curve = (keyword, seconds) => {
    const weights = bytes(keyword.attention), step = keyword.seconds / weights.length;
    let path = "M0 1";
    weights.forEach((weight, at) => { path += `L${((at + 0.5) * step / seconds).toFixed(5)} ${(1 - 0.97 * weight / 255).toFixed(4)}`; });
    return `${path}L${(keyword.seconds / seconds).toFixed(5)} 1`;
  };
  const spectrogram = (item, place) => {
    const lane = create("div", { className: "lane spec" });
    lane.append(create("img", { src: media().spectrograms[place], alt: "Mel spectrogram, 0 to 8 kHz from bottom to top, loud is white" }));
    const svg = shape("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", role: "img", "aria-label": "Attention of each keyword over time" });
    (item.keywords || []).forEach((keyword, at) => {
      if (!keyword.attention) return;
      const colour = COLOURS[at % COLOURS.length];
      svg.append(shape("path", { d: curve(keyword, item.seconds), stroke: colour, "stroke-width": 1.25, "vector-effect": "non-scaling-stroke",
        fill: "none", "stroke-opacity": 0.55, "data-keyword": at }));
    });
    lane.append(svg);
    return lane;
  };
  const wordLane = (item) => {
    const lane = create("div", { className: "lane words" });
    for (const [text, start, end] of item.words)
      lane.append(create("span", { textContent: text, title: `${start.toFixed(2)} to ${end.toFixed(2)} s`, style: `left:${100 * start / item.seconds}%` }));
    return lane;
  };
  const stagger = (lane) => {  // words that would overlap move one line down
    const ends = [0, 0, 0];
    for (const word of lane.children) {
      const left = word.offsetLeft;
      let line = ends.findIndex((end) => end <= left);
      if (line < 0) line = ends.indexOf(Math.min(...ends));
      ends[line] = left + word.offsetWidth + 2;
      word.style.top = `${line * 1.1}rem`;
    }
  };
  const axis = (seconds) => {
    const lane = create("div", { className: "lane axis", "aria-hidden": "true" });
    const step = seconds > 6 ? 2 : seconds > 2 ? 1 : 0.5;
    for (let at = 0; at < seconds - step / 2; at += step)
      lane.append(create("span", { textContent: at ? at.toFixed(step < 1 ? 1 : 0) : "0 s", style: `left:${100 * at / seconds}%` }));
    lane.append(create("span", { textContent: `${seconds.toFixed(2)} s`, style: "left:100%" }));
    return lane;
  };
  const heat = (keyword, colour) => {
    const weights = bytes(keyword.attention);
    const canvas = create("canvas", { width: weights.length, height: 1, "aria-hidden": "true" });
    const context = canvas.getContext("2d"), pixels = context.createImageData(weights.length, 1);
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    weights.forEach((weight, at) => pixels.data.set([red, green, blue, weight], 4 * at));
    context.putImageData(pixels, 0, 0);
    return canvas;
  };
  const plain = (subword) => subword.replace("</w>", "").replace("▁", "");
  const verdict = (keyword) => {
    const notes = [];
    if ("hit" in keyword) notes.push(keyword.hit ? "hit: one of the 5 nearest subwords is in the caption" : "no hit: none of the 5 nearest subwords is in the caption");
    if (keyword.gold) notes.push(`nearest subword of the caption: ${plain(keyword.gold[0])} (${keyword.gold[1].toFixed(3)})`);
    if (keyword.spoken) notes.push(`words spoken in this span: ${keyword.spoken.join(" ") || "none"}`);
    if (keyword.word) notes.push(`names the word “${keyword.word}”${"overlap" in keyword ? (keyword.overlap ? "; its span overlaps this word" : "; its span does not overlap this word") : ""}`);
    return notes;
  };
  const showKeyword = (item, at) => {
    const keyword = item.keywords[at];
    panel.querySelectorAll(".kw").forEach((button, number) => button.setAttribute("aria-pressed", String(number === at)));
    panel.querySelectorAll(".spec path").forEach((path) => {
      const on = Number(path.dataset.keyword) === at;
      path.setAttribute("stroke-opacity", on ? 1 : 0.35);
      path.setAttribute("stroke-width", on ? 2.5 : 1);
      path.setAttribute("fill", on ? path.getAttribute("stroke") : "none");
      path.setAttribute("fill-opacity", on ? 0.3 : 0);
    });
    const body = create("tbody");
    keyword.subwords.forEach((subword, number) => {
      const cosine = keyword.cosines[number];
      body.append(create("tr", {}, create("th", { scope: "row", textContent: plain(subword) || subword }), create("td", { textContent: cosine.toFixed(3) }),
        create("td", { className: "bar", "aria-hidden": "true" }, create("i", { style: `width:${Math.max(0, 100 * cosine)}%` }))));
    });
    const span = `${keyword.span[0].toFixed(2)} to ${keyword.span[1].toFixed(2)} s`;
    panel.querySelector(".detail").replaceChildren(
      create("table", {}, create("caption", {}, create("strong", { textContent: `Keyword ${keyword.number}, ${span}.` }), " Nearest subwords and their cosines."), body),
      ...verdict(keyword).map((note) => create("p", { className: "muted", textContent: note })));
  };
  const keywordRow = (item, keyword, at) => {
    const colour = COLOURS[at % COLOURS.length], lane = create("span", { className: "lane" });
    if (keyword.attention) lane.append(heat(keyword, colour));
    const [start, end] = keyword.span.map((time) => 100 * Math.min(time, item.seconds) / item.seconds);
    lane.append(create("span", { className: "span", style: `left:${start}%;width:${Math.max(0.5, end - start)}%` }));
    const nearest = plain(keyword.subwords[0]) || keyword.subwords[0];
    const button = create("button", { type: "button", className: "kw", "aria-pressed": "false",
      "aria-label": `Keyword ${keyword.number}: ${nearest}, cosine ${keyword.cosines[0].toFixed(2)}, ${keyword.span[0].toFixed(2)} to ${keyword.span[1].toFixed(2)} seconds` },
      create("span", { className: "name" }, create("span", { className: "dot", style: `background:${colour}` }), create("b", { textContent: nearest }),
        create("span", { textContent: keyword.cosines[0].toFixed(2) })), lane);
    button.addEventListener("click", () => showKeyword(item, at));
    return button;
  };
  const pictures = (item) => {
    const one = (number, text, right) => create("li", right ? { className: "right" } : {},
      create("img", { src: media().images[number], alt: images[number].alt }), text);
    return create("ul", { className: "pictures" }, one(item.image, "its image", true),
      ...item.found.map((number, at) => one(number, `result ${at + 1}: ${item.cosines[at].toFixed(2)}`, number === item.image)));
  };
  const follow = (audio, seconds, heads) => {
    const move = () => {
      for (const head of heads) { head.style.display = "block"; head.style.left = `${100 * Math.min(1, audio.currentTime / seconds)}%`; }
      if (!audio.paused && audio.isConnected) requestAnimationFrame(move);
    };
    audio.addEventListener("play", move);
    audio.addEventListener("seeked", move);
  };
  const drawPanel = (place) => {
    const item = utterances[place];
    const parts = [create("h3", { textContent: item.id }), create("p", { className: "muted", textContent:
      `Speaker ${item.speaker}, ${item.seconds.toFixed(2)} s. Its image is at rank ${item.rank}.` })];
    let audio = null;
    if (hasAudio(place)) {
      audio = create("audio", { controls: true, preload: "auto", src: media().audio[place], "aria-label": `Recording of ${item.id}` });
      for (const name of ["play", "pause", "ended"]) audio.addEventListener(name, showInList);
      parts.push(audio);
    } else parts.push(create("p", { className: "muted", textContent: "This page does not have the recording." }));
    const spec = spectrogram(item, place), wave = waveform(item);
    const tracks = create("div", { className: "tracks" }, track("waveform", wave), track("spectrogram", spec), track("", axis(item.seconds)));
    let words = null;
    if (item.words) { words = wordLane(item); tracks.append(track("spoken words", words)); }
    (item.keywords || []).forEach((keyword, at) => tracks.append(keywordRow(item, keyword, at)));
    parts.push(tracks, create("p", { className: "caption", textContent: `“${item.caption}”` }), create("p", { className: "muted", textContent: "Caption" }));
    for (const [name, text] of item.heard || []) {
      parts.push(create("p", { className: "caption", textContent: `“${text}”` }), create("p", { className: "muted", textContent: `Transcript of ${name}` }));
    }
    if (item.keywords) {
      parts.push(create("div", { className: "detail" }));
      if (!item.keywords.length) parts.push(create("p", { textContent: "This utterance has no keywords." }));
      else if (!item.keywords[0].attention) parts.push(create("p", { className: "muted", textContent: "The attention of this utterance was not stored. The boxes show the span of each keyword." }));
    }
    parts.push(pictures(item));
    panel.replaceChildren(...parts);
    if (words) stagger(words);
    if (audio) {
      const heads = [wave, spec].map((lane) => lane.appendChild(create("span", { className: "head" })));
      follow(audio, item.seconds, heads);
      for (const lane of [wave, spec]) lane.addEventListener("click", (event) => {
        const box = lane.getBoundingClientRect();
        audio.currentTime = item.seconds * (event.clientX - box.left) / box.width;
      });
    }
    if (item.keywords && item.keywords.length) showKeyword(item, 0);
  };

  // ---- the map --------------------------------------------------------------------------------------------------
  const canvas = document.getElementById("map"), note = document.getElementById("map-text");
  let points = [], squares = [];
  const place2d = () => {
    const all = [...utterances.map((item) => item.at), ...data.map];
    const bounds = [0, 1].map((axis) => { const values = all.map((point) => point[axis]); return [Math.min(...values), Math.max(...values)]; });
    const scale = (point, width, height) => [0, 1].map((axis) => {
      const [low, high] = bounds[axis], size = axis ? height : width, edge = 14;
      const part = (point[axis] - low) / (high - low || 1);
      return edge + (axis ? 1 - part : part) * (size - 2 * edge);
    });
    return scale;
  };
  const scale = place2d();
  const drawMap = () => {
    if (!canvas) return;
    const width = canvas.clientWidth, height = canvas.clientHeight, dense = window.devicePixelRatio || 1;
    if (!width) return;
    canvas.width = width * dense; canvas.height = height * dense;
    const context = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    context.scale(dense, dense);
    points = utterances.map((item) => scale(item.at, width, height));
    squares = data.map.map((point) => scale(point, width, height));
    context.globalAlpha = 0.55;
    context.fillStyle = colour("--orange");
    for (const [x, y] of squares) context.fillRect(x - 3, y - 3, 6, 6);
    context.fillStyle = colour("--blue");
    for (const [x, y] of points) { context.beginPath(); context.arc(x, y, 2.6, 0, 7); context.fill(); }
    context.globalAlpha = 1;
    if (chosen < 0) return;
    const [x, y] = points[chosen], [left, top] = squares[utterances[chosen].image];
    context.strokeStyle = colour("--text");
    context.lineWidth = 1.5;
    context.beginPath(); context.moveTo(x, y); context.lineTo(left, top); context.stroke();
    context.strokeRect(left - 6, top - 6, 12, 12);
    context.beginPath(); context.arc(x, y, 6, 0, 7); context.stroke();
    note.textContent = `${utterances[chosen].id}: “${utterances[chosen].caption}”, rank ${utterances[chosen].rank}`;
  };
  if (canvas) {
    canvas.addEventListener("click", (event) => {
      const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
      let best = -1, distance = 400;
      points.forEach(([left, top], at) => { const d = (left - x) ** 2 + (top - y) ** 2; if (d < distance) [best, distance] = [at, d]; });
      squares.forEach(([left, top], at) => {  // an image opens its first utterance
        const d = (left - x) ** 2 + (top - y) ** 2;
        if (d >= distance) return;
        const owner = utterances.findIndex((item) => item.image === at);
        if (owner >= 0) [best, distance] = [owner, d];
      });
      if (best >= 0) choose(best);
    });
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && chosen >= 0) { event.preventDefault(); open(chosen); return; }
      const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!direction) return;
      event.preventDefault();
      if (chosen < 0) { choose(0); return; }
      const [x, y] = points[chosen];
      let best = -1, cost = Infinity;
      points.forEach(([left, top], at) => {
        const along = (left - x) * direction[0] + (top - y) * direction[1];
        const aside = Math.abs((left - x) * direction[1]) + Math.abs((top - y) * direction[0]);
        if (along > 0.01 && along + 2 * aside < cost) [best, cost] = [at, along + 2 * aside];
      });
      if (best >= 0) choose(best);
    });
    new ResizeObserver(drawMap).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);
  }
  drawList();
  if (utterances.length) choose(0);
})();

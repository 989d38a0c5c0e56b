// Comparing two pictures: views, one zoom and one position for both sides. Loaded after page.js.
// The server's HTML is renewed in place, attribute by attribute: what a visitor set is kept here,
// for each place of the page, and put back.
(() => {
  const MOST = 32;  // screen pixels for one of the picture
  const TAP_PX = 6;
  const HANDLE_PX = 26;
  const kept = {};
  const seen = new WeakSet();
  let hand = null;  // the fingers, or the mouse, on one picture
  let scrolledAt = 0;
  let zoomedAt = 0;

  const figure = (from) => from.closest(".pc-compare");
  const clamp = (low, value, high) => Math.min(high, Math.max(low, value));
  const visible = () =>
    [...document.querySelectorAll(".pc-compare:not(.pc-busy)")].find((one) => one.offsetParent !== null);

  const stateOf = (whole) => {
    const { dataset } = whole;
    const state = (kept[whole.closest("[id]").id] ??= { view: "slide", scale: 0, x: 0.5, y: 0.5 });
    if (state.run !== dataset.run) {  // another file: the same view, of one picture the same place
      const of = `${dataset.of} ${dataset.width}x${dataset.height}`;
      if (state.of !== of) Object.assign(state, { scale: 0, x: 0.5, y: 0.5 });
      if (state.view === "difference") state.view = state.before;
      Object.assign(state, { run: dataset.run, of, split: 50, shown: "decoded" });
    }
    return state;
  };

  // Where the picture is: scale 0 stands for the whole picture in its window.
  const geometry = (whole) => {
    const state = stateOf(whole);
    const pane = [...whole.querySelectorAll(".pc-window")].find((one) => one.offsetParent !== null);
    const box = [pane.clientWidth, pane.clientHeight];
    const size = [Number(whole.dataset.width), Number(whole.dataset.height)];
    const fit = Math.min(box[0] / size[0], box[1] / size[1]);
    const least = Math.min(fit, 1);
    const scale = state.scale ? clamp(least, state.scale, MOST) : fit;
    const at = [state.x, state.y].map((centre, i) => {
      const room = box[i] - size[i] * scale;
      return room >= 0 ? room / 2 : clamp(room, box[i] / 2 - centre * size[i] * scale, 0);
    });
    return { box, size, fit, least, scale, at };
  };

  const set = (element, name, value) => {
    if (element.style.getPropertyValue(name) !== value) element.style.setProperty(name, value);
  };
  const mark = (element, name, value) => {
    if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  };

  const draw = (whole) => {
    if (!whole.isConnected || whole.offsetParent === null && !document.fullscreenElement) return;
    const state = stateOf(whole);
    const view = whole.querySelector(".pc-slide") ? state.view : "flip";
    mark(whole, "data-view", view);
    mark(whole, "data-shown", state.shown);
    const narrow = whole.clientWidth < 620 && whole.dataset.width / whole.dataset.height > 0.7;
    mark(whole, "data-stacked", String(narrow));
    for (const one of whole.querySelectorAll("[data-to]")) mark(one, "aria-pressed", String(one.dataset.to === view));
    const range = whole.querySelector(".pc-range");
    if (range) {
      set(whole, "--split", String(state.split));
      range.value = state.split;
      mark(range, "aria-valuetext", `${Math.round(state.split)} percent original`);
    }
    const { box, size, fit, scale, at } = geometry(whole);
    if (!box[0]) return;
    if (box[0] < size[0] * scale) state.x = (box[0] / 2 - at[0]) / (size[0] * scale);
    if (box[1] < size[1] * scale) state.y = (box[1] / 2 - at[1]) / (size[1] * scale);
    set(whole, "--wide", `${size[0] * scale}px`);
    set(whole, "--high", `${size[1] * scale}px`);
    set(whole, "--left", `${Math.round(at[0])}px`);
    set(whole, "--top", `${Math.round(at[1])}px`);
    // Pixels as they are: not where some would be wider than others.
    set(whole, "--rendering", scale === 1 || scale >= 2 ? "pixelated" : "auto");
    set(whole, "--touch", scale > fit ? "none" : "pan-y");
    set(whole, "--cursor", scale > fit ? "grab" : view === "slide" ? "ew-resize" : view === "flip" && range ? "pointer" : "auto");
    const whole_number = [1, 8].includes(scale) ? `${scale}:1` : `${Math.round(100 * scale)} %`;
    const said = whole.querySelector(".pc-zoom");
    if (said.textContent !== whole_number) said.textContent = whole_number;
  };

  const say = (whole, words) => (whole.querySelector(".pc-say").textContent = words);

  // `at`: what stays where it is, in pixels of the window; its centre if nothing is told.
  const zoomTo = (whole, wanted, at) => {
    const state = stateOf(whole);
    const { box, size, fit, least, scale, at: corner } = geometry(whole);
    const next = clamp(least, wanted, MOST);
    const [x, y] = [0, 1].map((i) => {
      const fixed = at ? at[i] : box[i] / 2;
      return (fixed - corner[i]) / (size[i] * scale) + (box[i] / 2 - fixed) / (size[i] * next);
    });
    Object.assign(state, { x, y, scale: Math.abs(next / fit - 1) < 0.001 ? 0 : next });
    zoomedAt = performance.now();
    draw(whole);
  };

  const zoom = (from, factor) => zoomTo(figure(from), geometry(figure(from)).scale * factor);
  const pixels = (from, scale) => zoomTo(figure(from), scale);
  const reset = (from) => {
    Object.assign(stateOf(figure(from)), { scale: 0, x: 0.5, y: 0.5, split: 50 });
    draw(figure(from));
  };

  const move = (whole, dx, dy) => {
    const state = stateOf(whole);
    const { size, scale } = geometry(whole);
    state.x -= dx / (size[0] * scale);
    state.y -= dy / (size[1] * scale);
    draw(whole);
  };

  const split = (from, value) => {
    stateOf(figure(from)).split = clamp(0, Number(value), 100);
    draw(figure(from));
  };

  const view = (from, name) => {
    const whole = figure(from);
    const state = stateOf(whole);
    if (name === "flip" && state.view === "flip") return flip(whole);
    if (state.view !== "difference") state.before = state.view;
    Object.assign(state, { view: name, shown: "decoded" });
    if (name === "difference") ask(whole);
    draw(whole);
    say(whole, name === "flip" ? "Flip: tap the picture, or press O, to see the other one" : `View: ${from.textContent}`);
  };

  const flip = (whole) => {
    const state = stateOf(whole);
    if (state.view === "slide") state.split = state.split > 50 ? 0 : 100;
    else if (state.view === "flip") state.shown = state.shown === "decoded" ? "original" : "decoded";
    else Object.assign(state, { view: "flip", shown: "original" });
    draw(whole);
    const original = state.view === "slide" ? state.split > 50 : state.shown === "original";
    say(whole, whole.querySelector(original ? ".pc-left" : ".pc-right").textContent);
  };

  const full = (from) => {
    if (document.fullscreenElement) document.exitFullscreen();
    else figure(from).requestFullscreen();
  };

  const save = (from) => {
    const link = document.createElement("a");
    link.href = figure(from).querySelector(".pc-decoded").src;
    link.download = "decoded.png";
    link.click();
  };

  // Another codec's picture in the place of ours.
  const show = (from) => {
    const whole = visible();
    if (!whole) return;
    whole.querySelector(".pc-decoded").src = from.querySelector("img").src;
    whole.querySelector(".pc-right").textContent = from.dataset.tag;
    whole.dataset.place = from.dataset.place;
    for (const other of document.querySelectorAll(".pc-show")) other.setAttribute("aria-pressed", other === from);
    const state = stateOf(whole);
    state.shown = "decoded";
    if (state.view === "difference") ask(whole);
    draw(whole);
    say(whole, `Shown: ${from.dataset.tag}`);
    whole.scrollIntoView({ block: "nearest", behavior: "smooth" });
  };

  // The server makes the maps of a difference; they come inside a hidden piece of the page.
  const ask = (whole) => {
    const { run, place } = whole.dataset;
    for (const image of whole.querySelectorAll(".pc-maps img")) image.removeAttribute("src");
    if (!answer(whole)) whole.dispatchEvent(new CustomEvent("differ", { bubbles: true, detail: { run, place } }));
  };

  const answer = (whole) => {
    const { run, place } = whole.dataset;
    const maps = document.querySelector(`#pc-difference [data-run="${run}"][data-place="${place}"]`);
    if (!maps) return false;
    for (const kind of ["pc-error", "pc-feature"]) {
      const [from, to] = [maps, whole].map((one) => one.querySelector(`.${kind}`));
      to.src = from.src;
      to.alt = from.alt;
      to.closest(".pc-pane").querySelector(".pc-most").textContent = from.dataset.most;
    }
    return true;
  };

  const differs = (element, differ) => element.addEventListener("differ", ({ detail }) => differ(detail));
  const answered = (element) =>
    new MutationObserver(() => {
      const whole = visible();
      if (whole && stateOf(whole).view === "difference" && answer(whole)) say(whole, "The difference is shown");
    }).observe(element, { subtree: true, childList: true, attributes: true });

  // Hands: one finger or the mouse moves the edge, or the picture where it is larger than its
  // window; two fingers zoom. A page is scrolled by one finger over a picture that is whole.
  const inside = (pane, x, y) => {
    const box = pane.getBoundingClientRect();
    return [x - box.left, y - box.top];
  };

  const grip = (whole, pane, [x, y]) => {
    const { box, fit, scale } = geometry(whole);
    const state = stateOf(whole);
    const sliding = whole.dataset.view === "slide";
    const near = Math.abs(x - (box[0] * state.split) / 100) < HANDLE_PX && Math.abs(y - box[1] / 2) < 2 * HANDLE_PX;
    if (sliding && (scale <= fit || near)) return "edge";
    return scale > fit ? "move" : "none";
  };

  document.addEventListener("pointerdown", (event) => {
    const pane = event.target.closest?.(".pc-compare:not(.pc-busy) .pc-window");
    if (!pane || event.button) return;
    const whole = figure(pane);
    if (hand?.whole !== whole) hand = { whole, points: new Map() };
    pane.setPointerCapture(event.pointerId);
    hand.points.set(event.pointerId, [event.clientX, event.clientY]);
    const at = inside(pane, event.clientX, event.clientY);
    if (hand.points.size > 1) Object.assign(hand, { mode: "pinch", moved: true });
    else Object.assign(hand, { pane, mode: grip(whole, pane, at), moved: false, aside: false, from: [event.clientX, event.clientY] });
    if (hand.mode === "edge" && event.pointerType === "mouse") split(whole, (100 * at[0]) / pane.clientWidth);
  });

  document.addEventListener("pointermove", (event) => {
    const before = hand?.points.get(event.pointerId);
    if (!before) return;
    const { whole, pane, points } = hand;
    const now = [event.clientX, event.clientY];
    const [dx, dy] = now.map((value, i) => Math.abs(value - hand.from[i]));
    hand.moved ||= Math.hypot(dx, dy) > TAP_PX;
    hand.aside ||= dx > TAP_PX && dx > dy;  // else a finger that came to scroll would take the edge along
    if (points.size > 1) {
      const other = [...points].find(([id]) => id !== event.pointerId)[1];
      const apart = (one) => Math.max(1, Math.hypot(one[0] - other[0], one[1] - other[1]));
      points.set(event.pointerId, now);
      move(whole, (now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
      const middle = inside(pane, (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
      zoomTo(whole, (geometry(whole).scale * apart(now)) / apart(before), middle);
      return;
    }
    points.set(event.pointerId, now);
    if (!hand.moved) return;
    if (hand.mode === "edge" && hand.aside) split(whole, (100 * inside(pane, ...now)[0]) / pane.clientWidth);
    if (hand.mode === "move") move(whole, now[0] - before[0], now[1] - before[1]);
  });

  const let_go = (event) => {
    if (!hand?.points.delete(event.pointerId)) return;
    const { whole, pane, moved, mode, points } = hand;
    if (points.size) hand.mode = "move";
    else hand = null;
    if (moved || event.type !== "pointerup") return;
    if (whole.dataset.view === "flip" && whole.querySelector(".pc-range")) flip(whole);
    else if (mode === "edge") split(whole, (100 * inside(pane, event.clientX, 0)[0]) / pane.clientWidth);
  };
  document.addEventListener("pointerup", let_go);
  document.addEventListener("pointercancel", let_go);
  document.addEventListener("scroll", () => (scrolledAt = performance.now()), { capture: true, passive: true });

  const wheel = (event) => {
    const pane = event.target.closest(".pc-compare:not(.pc-busy) .pc-window");
    if (!pane) return;
    const whole = figure(pane);
    const { scale, fit } = geometry(whole);
    const now = performance.now();
    const outside = event.deltaY > 0 && scale <= fit;
    if (outside && now - zoomedAt < 300) event.preventDefault();
    // A page that is being scrolled is scrolled on, and a whole picture does not get smaller.
    if (outside || (!event.ctrlKey && now - scrolledAt < 400)) return;
    event.preventDefault();
    const step = event.deltaY * (event.deltaMode ? 16 : 1) * (event.ctrlKey ? 0.01 : 0.002);
    zoomTo(whole, scale * Math.exp(-step), inside(pane, event.clientX, event.clientY));
  };

  const keys = (event) => {
    const whole = figure(event.currentTarget);
    if (event.target !== event.currentTarget || event.ctrlKey || event.metaKey || event.altKey) return;
    const { box, fit, scale } = geometry(whole);
    const step = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (step && scale > fit) move(whole, (step[0] * box[0]) / 8, (step[1] * box[1]) / 8);
    else if (event.key === "+" || event.key === "=") zoom(whole, 2);
    else if (event.key === "-") zoom(whole, 0.5);
    else if (event.key === "0") reset(whole);
    else if (event.key === "1" || event.key === "8") pixels(whole, Number(event.key));
    else return;
    event.preventDefault();
  };

  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("textarea, select, input:not([type=range]), [contenteditable]");
    if (event.key.toLowerCase() !== "o" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const whole = visible();
    if (whole?.querySelector(".pc-range")) flip(whole);
  });

  const resized = new ResizeObserver((changes) => {
    for (const { target } of changes) if (target.isConnected && !target.closest(".pc-busy")) draw(figure(target));
  });
  const settle = (whole) => {
    const pane = whole.querySelector(".pc-view");
    if (!seen.has(pane)) {
      seen.add(pane);
      resized.observe(pane);
      pane.addEventListener("wheel", wheel, { passive: false });
      pane.addEventListener("keydown", keys);
      // Two fingers zoom the picture, not the page.
      pane.addEventListener("touchmove", (event) => event.touches.length > 1 && event.preventDefault(), { passive: false });
    }
    draw(whole);
  };
  new MutationObserver((changes) => {
    const found = new Set();
    for (const { target, addedNodes } of changes) {
      if (target.matches?.(".pc-compare")) found.add(target);
      for (const node of addedNodes) for (const one of node.querySelectorAll?.(".pc-compare") ?? []) found.add(one);
      for (const node of addedNodes) if (node.matches?.(".pc-compare")) found.add(node);
    }
    for (const whole of found) if (!whole.matches(".pc-busy")) settle(whole);
  }).observe(document.documentElement, {
    subtree: true, childList: true, attributes: true, attributeFilter: ["style", "class", "data-run", "data-view"],
  });

  Object.assign(window.percov, { split, zoom, pixels, reset, view, full, save, show, differs, answered });
})();

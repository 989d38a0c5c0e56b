// What the page does without the server. Loaded once, into the head.
(() => {
  const visible = (selector) =>
    [...document.querySelectorAll(selector)].find((found) => found.offsetParent !== null);

  const copy = async (from) => {
    const field = from.parentElement.querySelector("input");
    field.select();
    try {
      await navigator.clipboard.writeText(field.value);
    } catch {
      document.execCommand("copy");  // pages without a secure origin have no clipboard
    }
    from.textContent = "Copied";
    setTimeout(() => (from.textContent = "Copy"), 1500);
  };

  const heat = (stops, share) => {
    const at = Math.min(0.9999, Math.max(0, share)) * (stops.length - 1);
    const low = Math.floor(at);
    return stops[low].map((v, i) => Math.round(v + (stops[low + 1][i] - v) * (at - low)));
  };

  const paint = (whole) => {
    const upTo = Number(whole.querySelector("input").value);
    // The level that the stages have come to.
    const data = whole.levels.find(({ last }) => upTo <= last);
    const canvas = whole.querySelector("canvas");
    const cell = 16;
    whole.shown = data;
    canvas.width = Math.round(data.columns * cell * data.cover[0]);
    canvas.height = Math.round(data.rows * cell * data.cover[1]);
    const context = canvas.getContext("2d");
    const most = Math.max(0.01, Number(whole.dataset.most));
    const colours = getComputedStyle(document.documentElement).getPropertyValue("--pc-heat").match(/rgb[^)]*/g);
    const stops = colours.map((colour) => colour.match(/\d+/g).map(Number));
    data.bits.forEach((bits, i) => {
      const x = (i % data.columns) * cell;
      const y = Math.floor(i / data.columns) * cell;
      const shown = data.stages[i] < upTo;
      const [r, g, b] = heat(stops, bits / most);
      if (!shown) context.fillStyle = "rgba(8, 10, 16, .82)";
      else if (!data.sent[i]) context.fillStyle = "rgba(255, 255, 255, .35)";
      else context.fillStyle = `rgba(${r}, ${g}, ${b}, .62)`;
      context.fillRect(x, y, cell, cell);
    });
    const seen = data.bits.filter((_, i) => data.sent[i] && data.stages[i] < upTo);
    const total = seen.reduce((sum, bits) => sum + bits, 0);
    whole.querySelector("output").textContent =
      `after stage ${upTo}: ${seen.length} ${data.name} tokens, ${total.toFixed(0)} bits`;
  };

  const tokens = (from) => {
    const whole = from.closest(".pc-tokens");
    const range = whole.querySelector("input");
    clearInterval(whole.timer);
    range.value = range.defaultValue;
    whole.levels = JSON.parse(whole.dataset.levels);
    const canvas = whole.querySelector("canvas");
    canvas.onmousemove = (event) => {
      const { name, columns, rows, cover, bits, sent } = whole.shown;
      const box = canvas.getBoundingClientRect();
      const column = Math.floor(((event.clientX - box.left) / box.width) * columns * cover[0]);
      const row = Math.floor(((event.clientY - box.top) / box.height) * rows * cover[1]);
      const i = row * columns + column;
      if (bits[i] === undefined) return;
      const absent = name === "fine" ? "guessed" : "drawn by the seed";
      whole.querySelector("output").textContent =
        `row ${row + 1}, column ${column + 1}: ${sent[i] ? `${bits[i].toFixed(2)} bits` : `not sent, ${absent}`}`;
    };
    canvas.onmouseleave = () => paint(whole);
    paint(whole);
  };

  const stage = (from, to) => {
    const whole = from.closest(".pc-tokens");
    clearInterval(whole.timer);
    if (to !== undefined) whole.querySelector("input").value = to;
    paint(whole);
  };

  const play = (from) => {
    const whole = from.closest(".pc-tokens");
    const range = whole.querySelector("input");
    clearInterval(whole.timer);
    range.value = 0;
    paint(whole);
    whole.timer = setInterval(() => {
      range.value = Number(range.value) + 1;
      paint(whole);
      if (range.value === range.max || !whole.isConnected) clearInterval(whole.timer);
    }, 600);
  };

  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter") {
      event.preventDefault();
      visible("#pc-compress, #pc-open-link, #pc-many-start")?.click();
    }
  });

  // A size that is typed counts once it is whole, and within the ends of its slider.
  const typed = ".pc-size input[type=number]";
  document.addEventListener("input", (event) => {
    if (event.isTrusted && event.target.matches(typed)) event.stopImmediatePropagation();
  }, true);
  document.addEventListener("change", ({ target }) => {
    if (!target.matches(typed)) return;
    target.value = Math.min(target.max, Math.max(target.min, Math.round(target.value)));
    target.dispatchEvent(new Event("input", { bubbles: true }));
  }, true);

  // What a button inside a piece of the page's HTML stands for.
  const buttons = (element, pressed) =>
    element.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) pressed(button.dataset.key);
    });

  // Pictures that are pasted anywhere while `element` is seen. Not through gr.Image: its own button
  // asks for a permission first, and a picture that is shown would have to be removed before.
  const pasted = (element, upload, arrived) =>
    document.addEventListener("paste", async (event) => {
      const picture = [...event.clipboardData.files].find((file) => file.type.startsWith("image/"));
      if (!picture || !element.offsetParent) return;
      event.preventDefault();
      const file = await upload(picture).catch(() => null);
      arrived(file?.path ?? "");
    });

  // The picture of a point, beside the pointer; no source: away with it.
  const peek = (source, event) => {
    const shown = document.querySelector(".pc-peek") ?? document.body.appendChild(new Image());
    Object.assign(shown, { className: "pc-peek", alt: "", hidden: !source });
    if (!source) return;
    shown.src = source;
    shown.style.left = `${Math.min(event.clientX + 16, innerWidth - 130)}px`;
    shown.style.top = `${Math.min(event.clientY + 48, innerHeight - 130)}px`;
  };

  // gr.Plot tells nobody about clicks: a piece of HTML beside it listens in its place.
  const points = (clicked) =>
    setInterval(() => {
      const plot = document.querySelector("#pc-plot .js-plotly-plot");
      if (!plot || !plot.on || plot.listened) return;
      plot.listened = true;
      plot.on("plotly_click", (event) => {
        const key = event.points[0].customdata?.[1];
        if (key) clicked(key);
      });
      plot.on("plotly_hover", ({ points: [{ customdata }], event }) => peek(customdata?.[2], event));
      plot.on("plotly_unhover", () => peek());
    }, 300);

  // On a phone the result is below the controls, once the gallery above them has made room.
  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("#pc-compress")) return;
    const arrived = new MutationObserver(() => {
      if (!document.querySelector("#pc-stage figure")) return;
      arrived.disconnect();
      const head = document.querySelector("#pc-head");
      const { top } = head.getBoundingClientRect();
      if (innerWidth <= 760 && (top < 0 || top > innerHeight / 2)) head.scrollIntoView({ behavior: "smooth" });
    });
    arrived.observe(document.querySelector("#pc-stage"), { subtree: true, childList: true });
  });

  const own = () => {
    if (document.documentElement.matches(".pc-staged")) location.search = "";
    [...document.querySelectorAll("[role=tab]")].find((tab) => tab.textContent.trim() === "Compress").click();
    const box = document.querySelector("#pc-image");
    box.scrollIntoView({ behavior: "smooth", block: "center" });
    box.querySelector("input[type=file]")?.click();
  };

  // What was asked for last is kept here, where a callback looks once its turn has come: gradio
  // sends an event that had to wait with the data of the one before.
  const asks = (element, begin) =>
    buttons(element, (key) => {
      if (!key) return;
      window.percov.asked = key;
      begin();
    });

  // The presenter's mode: everything but `element` is hidden, and keys go from file to file.
  const STAGE_KEYS = {
    ArrowRight: "after", PageDown: "after", " ": "after", n: "after", ArrowLeft: "before", PageUp: "before", p: "before",
  };
  const stages = (element, turn) => {
    if (!new URLSearchParams(location.search).has("stage")) return;
    document.documentElement.classList.add("pc-staged");
    asks(element, turn);
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "f" && !document.fullscreenElement) document.documentElement.requestFullscreen();
      // Some keys belong to what has the focus.
      const owner = { " ": "button, a", ArrowRight: ".pc-range, .pc-view", ArrowLeft: ".pc-range, .pc-view" }[event.key];
      const way = STAGE_KEYS[event.key];
      if (!way || (owner && event.target.closest?.(owner))) return;
      event.preventDefault();
      element.querySelector(`.pc-${way}`)?.click();
    });
    turn();
  };

  window.percov = {
    presses: 0, asked: "", copy, tokens, stage, play, buttons, asks, pasted, points, own, stages,
  };
})();

// Draws the page's charts in the reader's theme and to the reader's screen; draws again when either changes.
(() => {
  const { template, charts } = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches;
  const plain = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };
  const escape = (text) => text.replace(/[&<>]/g, (sign) => plain[sign]);
  // Cuts long names at their end, middle or start: where it leaves the most of them different.
  const shorten = (names, most) => {
    const cut = (start) => (name) => {
      const letters = Array.from(name);
      const end = most - 1 - start;
      if (letters.length <= most) return name;
      return letters.slice(0, start).join("") + "…" + letters.slice(letters.length - end).join("");
    };
    const ways = [most - 1, most >> 1, 0].map((start) => names.map(cut(start)));
    return ways.reduce((best, way) => (new Set(way).size > new Set(best).size ? way : best));
  };

  // {css: "--accent"} stands for the theme's colour of that name.
  const themed = (value, style) => {
    if (Array.isArray(value)) return value.map((item) => themed(item, style));
    if (value === null || typeof value !== "object") return value;
    if (typeof value.css === "string") return style.getPropertyValue(value.css).trim();
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item, style)]));
  };

  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    for (const chart of charts) {
      const box = document.getElementById("chart-" + chart.name);
      const width = box.clientWidth;
      const height = chart.square ? Math.max(260, Math.min(width, chart.height)) : chart.height;
      const { data, layout } = themed(chart.figure, style);
      Object.assign(layout, { width, height, template: themed(template, style), dragmode: touch ? false : "zoom" });
      layout.uirevision = "kept"; // a zoom outlives another theme or size
      for (const [axis, names] of Object.entries(chart.labels)) {
        // One row of text needs about 14 px: name every class, or every second, third, … one.
        const room = (axis === "xaxis" ? width : height) * 0.8;
        const step = Math.ceil(names.length / Math.max(1, room / 14));
        const shown = names.map((_, i) => i).filter((i) => i % step === 0);
        const short = shorten(names, width < 480 ? 14 : 24);
        const texts = shown.map((i) => escape(short[i]));
        const flat = Math.max(...texts.map((text) => text.length)) * 8 < (room / names.length) * step;
        Object.assign(layout[axis], { tickmode: "array", tickvals: shown, ticktext: texts });
        if (axis === "xaxis") layout[axis].tickangle = flat ? 0 : -90;
        if (axis === "xaxis" && !flat && width < 480) {
          // Upright names would take the room of the chart itself; the rows carry the same ones.
          layout[axis].showticklabels = false;
          layout.height -= 80;
        }
      }
      // Numbers written into cells are as large as the cells let them be, or go.
      for (const trace of data.filter((trace) => trace.mode === "text")) {
        const cell = (width * 0.75) / chart.labels.xaxis.length;
        const size = Math.min(12, (cell * 1.3) / Math.max(...trace.text.map((text) => text.length)));
        Object.assign(trace, { visible: size >= 7, textfont: { ...trace.textfont, size } });
      }
      if (touch) for (const axis of ["xaxis", "yaxis"]) layout[axis].fixedrange = true;
      Plotly.react(box, data, layout, { displayModeBar: false });
    }
  };

  // Where a page has pictures, a point whose `customdata` is the number of one shows it above or below the pointer.
  const showPictures = () => {
    const pictures = document.getElementById("pictures")?.content.children;
    const pointed = document.getElementById("pointed");
    for (const chart of pictures ? charts : []) {
      const box = document.getElementById("chart-" + chart.name);
      box.on("plotly_unhover", () => (pointed.hidden = true));
      box.on("plotly_hover", ({ event, points }) => {
        const picture = pictures[points[0].customdata];
        pointed.hidden = !picture;
        if (!picture) return;
        pointed.replaceChildren(picture.cloneNode());
        const below = event.clientY < 170;
        const side = Math.min(Math.max(event.clientX, 60), innerWidth - 60);
        Object.assign(pointed.style, { left: `${side}px`, top: `${event.clientY + (below ? 40 : -150)}px` });
      });
    }
  };

  let waiting;
  draw();
  showPictures();
  dark.addEventListener("change", draw);
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(draw, 100);
  });
})();

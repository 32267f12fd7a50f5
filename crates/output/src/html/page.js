// Draws the page from its data. Whatever is text goes in through textContent; nothing is loaded.
(() => {
  "use strict";

  const page = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const SVG = "http://www.w3.org/2000/svg";

  // ---- Making elements ------------------------------------------------------------------------------------------

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "text") element.textContent = value;
      else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children) if (child) element.append(child);
    return element;
  }
  const html = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

  let ids = 0;
  const newId = () => `e${(ids += 1)}`;

  // ---- Numbers --------------------------------------------------------------------------------------------------

  const formats = new Map();
  function number(value, digits) {
    if (value === null || value === undefined) return "–";
    if (value !== 0 && Math.abs(value) < 0.5 * 10 ** -digits) return `<${(10 ** -digits).toFixed(digits)}`;
    let format = formats.get(digits);
    if (!format) {
      format = new Intl.NumberFormat("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
      formats.set(digits, format);
    }
    return format.format(value);
  }

  // A number on an axis: as short as it can be.
  function tick(value) {
    const size = Math.abs(value);
    if (size >= 1e9) return `${+(value / 1e9).toPrecision(4)}G`;
    if (size >= 1e6) return `${+(value / 1e6).toPrecision(4)}M`;
    if (size >= 1e4) return `${+(value / 1e3).toPrecision(4)}k`;
    return String(+value.toPrecision(6));
  }

  // Seconds since the session's start, as precise as a step of the axis asks for.
  function clock(seconds, step) {
    const digits = step >= 1 ? 0 : Math.min(6, Math.ceil(-Math.log10(step) - 1e-9));
    if (Math.abs(seconds) < 120) return `${seconds.toFixed(digits)} s`;
    const sign = seconds < 0 ? "-" : "";
    const whole = Math.abs(seconds);
    const hours = Math.floor(whole / 3600);
    const minutes = Math.floor((whole % 3600) / 60);
    const rest = (whole % 60).toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
    return hours ? `${sign}${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${sign}${minutes}:${rest}`;
  }

  // ---- Colours --------------------------------------------------------------------------------------------------
  // They stand in the styles; a canvas is told what they are at the moment.

  const probe = html("span", { class: "probe", "aria-hidden": "true" });
  let colours = new Map();
  function colour(name) {
    if (!colours.has(name)) {
      probe.className = `probe ${name}`;
      colours.set(name, getComputedStyle(probe).color);
    }
    return colours.get(name);
  }

  const DASHES = [[], [7, 4], [2, 3], [11, 3, 2, 3], [4, 2], [14, 4], [1, 4], [9, 2, 2, 2, 2, 2]];
  const SHAPES = ["circle", "triangle", "square", "cross"];
  const seriesColour = (at) => `s${at % 4}`;

  function shape(context, name, x, y, size) {
    const half = size / 2;
    context.beginPath();
    if (name === "circle") context.arc(x, y, half, 0, 2 * Math.PI);
    else if (name === "square") context.rect(x - half, y - half, size, size);
    else if (name === "triangle") {
      context.moveTo(x, y - half * 1.2);
      context.lineTo(x + half * 1.1, y + half * 0.8);
      context.lineTo(x - half * 1.1, y + half * 0.8);
      context.closePath();
    } else {
      context.moveTo(x - half, y - half);
      context.lineTo(x + half, y + half);
      context.moveTo(x + half, y - half);
      context.lineTo(x - half, y + half);
    }
    context.stroke();
  }

  // What a series looks like, for its button.
  function swatch(style, at) {
    const picture = svg("svg", { width: 28, height: 12, viewBox: "0 0 28 12", class: `swatch ${seriesColour(at)}`, "aria-hidden": "true" });
    if (style !== "points") {
      picture.append(svg("line", { x1: 0, x2: 28, y1: 6, y2: 6, "stroke-dasharray": DASHES[at % DASHES.length].join(" ") }));
      return picture;
    }
    const form = {
      circle: () => svg("circle", { cx: 14, cy: 6, r: 3.5 }),
      triangle: () => svg("path", { d: "M14 1.5 18.5 10h-9z" }),
      square: () => svg("rect", { x: 10.5, y: 2.5, width: 7, height: 7 }),
      cross: () => svg("path", { d: "M10.5 2.5l7 7m0-7l-7 7" }),
    };
    picture.append(form[SHAPES[at % SHAPES.length]]());
    return picture;
  }

  // ---- The time that everything shows ---------------------------------------------------------------------------

  const whole = (() => {
    const [from, to] = page.range;
    const margin = Math.max((to - from) * 0.01, 1e-6);
    return [from - margin, to + margin];
  })();
  let range = whole.slice();
  let cursor = null;
  const views = [];
  let isAsked = false;

  function setRange(from, to) {
    const least = Math.max((whole[1] - whole[0]) * 1e-6, 1e-6);
    if (!(to - from >= least)) {
      const middle = (from + to) / 2;
      [from, to] = [middle - least / 2, middle + least / 2];
    }
    const width = Math.min(to - from, whole[1] - whole[0]);
    from = Math.min(Math.max(from, whole[0]), whole[1] - width);
    range = [from, from + width];
    if (isAsked) return;
    isAsked = true;
    requestAnimationFrame(() => {
      isAsked = false;
      for (const view of views) view.show(range);
      showRange();
    });
  }
  const reset = () => setRange(whole[0], whole[1]);
  function zoom(factor) {
    const middle = cursor !== null && cursor > range[0] && cursor < range[1] ? cursor : (range[0] + range[1]) / 2;
    setRange(middle - (middle - range[0]) * factor, middle + (range[1] - middle) * factor);
  }
  function pan(part) {
    const by = (range[1] - range[0]) * part;
    setRange(range[0] + by, range[1] + by);
  }

  // The keys that every picture of the time understands.
  function timeKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    if (event.key === "+" || event.key === "=") zoom(0.5);
    else if (event.key === "-" || event.key === "_") zoom(2);
    else if (event.key === "0" || event.key === "Escape") reset();
    else if (event.shiftKey && event.key === "ArrowLeft") pan(-0.2);
    else if (event.shiftKey && event.key === "ArrowRight") pan(0.2);
    else return false;
    event.preventDefault();
    return true;
  }

  const rangeText = html("span", { class: "range", role: "status" });
  function showRange() {
    const step = (range[1] - range[0]) / 100;
    const shown = (at) => clock(Math.min(Math.max(at, page.range[0]), page.range[1]), step);
    rangeText.textContent = `${shown(range[0])} – ${shown(range[1])}`;
  }

  // ---- Tables ---------------------------------------------------------------------------------------------------

  const scrollers = [];
  const labels = new Map();
  function scroller(label, child) {
    // Several things may have the same name; what a reader hears of them is not the same.
    const count = (labels.get(label) || 0) + 1;
    labels.set(label, count);
    const box = html("div", { class: "scroll", role: "region", "aria-label": count > 1 ? `${label} (${count})` : label }, child);
    scrollers.push(box);
    return box;
  }
  // Only what scrolls is a stop for the tabulator key.
  function checkScrollers() {
    for (const box of scrollers) {
      if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.setAttribute("tabindex", "0");
      else box.removeAttribute("tabindex");
    }
  }

  function cell(column, value) {
    if (column.kind === "text") return html("td", { class: value && value.length <= 20 ? "short" : null, text: value === null ? "–" : value });
    const text = html("span", { text: number(value, column.digits) });
    if (column.kind !== "share") return html("td", { class: "number" }, text);
    const bar = html("span", { class: "bar", "aria-hidden": "true" }, html("span"));
    bar.firstChild.style.width = `${Math.max(0, Math.min(100, value || 0))}%`;
    return html("td", { class: "share" }, bar, text);
  }

  function plainTable(caption, columns, rows) {
    const head = columns.map((column) => html("th", { scope: "col", class: column.kind === "text" ? null : column.kind, text: column.name }));
    const body = html("tbody");
    for (const row of rows) {
      const cells = columns.map((column, at) => cell(column, row[at]));
      body.append(html("tr", {}, ...cells));
    }
    return html("table", {}, html("caption", { class: "unseen", text: caption }), html("thead", {}, html("tr", {}, ...head)), body);
  }

  function note(text) {
    return text ? html("p", { class: "note", text }) : null;
  }

  // Made when somebody opens it.
  function folded(title, make) {
    const box = html("details", {}, html("summary", { text: title }));
    box.addEventListener("toggle", () => {
      if (box.open && box.children.length === 1) box.append(...make().filter(Boolean));
      checkScrollers();
    });
    return box;
  }

  function drawTable(block) {
    const make = () => scroller(block.title, plainTable(block.title, block.columns, block.rows));
    if (block.is_folded) return folded(block.title, () => [note(block.note), make()]);
    return html("div", { class: "block" }, html("h3", { text: block.title }), note(block.note), make());
  }

  function numbersOf(title, columns, rows, what = "The numbers") {
    return folded(`${what} (${number(rows.length, 0)} ${rows.length === 1 ? "row" : "rows"})`, () => [
      scroller(`Numbers: ${title}`, plainTable(title, columns, rows)),
    ]);
  }

  // Steps of a scale of time that people can think in, seconds.
  const STEPS = [
    ...[-9, -8, -7, -6, -5, -4, -3, -2, -1].flatMap((power) => [1, 2, 5].map((factor) => +(factor * 10 ** power).toPrecision(1))),
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800,
  ];

  // ---- Charts over time -----------------------------------------------------------------------------------------

  const LABELS = 130;
  // All charts keep the room for it, so that one moment is at the same place in each.
  const hasLabels = (width) => width > 640;

  function series(block, at) {
    const dash = DASHES[at % DASHES.length];
    const common = { label: block.names[at], stroke: () => colour(seriesColour(at)), spanGaps: true };
    if (block.style === "points") return { ...common, paths: () => null, points: { show: false } };
    if (block.means) return { ...common, width: 1, alpha: 0.3, points: { show: false } };
    const line = { ...common, width: 1.5, dash, points: { show: false } };
    return block.style === "steps" ? { ...line, spanGaps: false, paths: uPlot.paths.stepped({ align: 1 }) } : line;
  }

  function drawPoints(chart, block) {
    const context = chart.ctx;
    const ratio = window.devicePixelRatio || 1;
    const { left, top, width, height } = chart.bbox;
    context.save();
    context.beginPath();
    context.rect(left, top, width, height);
    context.clip();
    context.lineWidth = ratio;
    context.globalAlpha = block.means ? 0.3 : 1;
    const xs = chart.data[0];
    for (let at = 1; at < chart.series.length; at += 1) {
      if (!chart.series[at].show) continue;
      context.strokeStyle = colour(seriesColour(at - 1));
      const ys = chart.data[at];
      for (let place = 0; place < xs.length; place += 1) {
        if (ys[place] === null || xs[place] < chart.scales.x.min || xs[place] > chart.scales.x.max) continue;
        const x = chart.valToPos(xs[place], "x", true);
        const y = chart.valToPos(ys[place], "y", true);
        shape(context, SHAPES[(at - 1) % SHAPES.length], x, y, (block.means ? 4 : 6) * ratio);
      }
    }
    context.restore();
  }

  // Where a chart has too many points to follow one by one, their means are what leads the eye.
  function drawMeans(chart, block) {
    const context = chart.ctx;
    const ratio = window.devicePixelRatio || 1;
    const { left, top, width, height } = chart.bbox;
    const { min, max } = chart.scales.x;
    context.save();
    context.beginPath();
    context.rect(left, top, width, height);
    context.clip();
    context.lineWidth = 2 * ratio;
    context.lineJoin = "round";
    const xs = block.means.x;
    block.means.y.forEach((ys, series) => {
      if (!chart.series[series + 1].show) return;
      context.strokeStyle = colour(seriesColour(series));
      context.setLineDash(DASHES[series % DASHES.length].map((length) => length * ratio));
      context.beginPath();
      let isFirst = true;
      for (let at = 0; at < xs.length; at += 1) {
        // One on either side of what is shown.
        if (ys[at] === null || (xs[at + 1] ?? xs[at]) < min || (xs[at - 1] ?? xs[at]) > max) continue;
        const place = [chart.valToPos(xs[at], "x", true), chart.valToPos(ys[at], "y", true)];
        if (isFirst) context.moveTo(...place);
        else context.lineTo(...place);
        isFirst = false;
      }
      context.stroke();
    });
    context.restore();
  }

  // The name of each series at its right end, so that nobody has to tell colours apart.
  function drawLabels(chart, block) {
    if (!hasLabels(chart.width) || block.names.length < 2) return;
    const ratio = window.devicePixelRatio || 1;
    const context = chart.ctx;
    const { left, top, width, height } = chart.bbox;
    const labels = [];
    for (let at = 1; at < chart.series.length; at += 1) {
      if (!chart.series[at].show) continue;
      const xs = block.means ? block.means.x : chart.data[0];
      const ys = block.means ? block.means.y[at - 1] : chart.data[at];
      let place = xs.length - 1;
      while (place >= 0 && (xs[place] > chart.scales.x.max || ys[place] === null)) place -= 1;
      if (place < 0 || (block.style === "points" && xs[place] < chart.scales.x.min)) continue;
      labels.push({ at: at - 1, y: chart.valToPos(ys[place], "y", true) });
    }
    const gap = 14 * ratio;
    labels.sort((a, b) => a.y - b.y);
    for (const label of labels) label.y = Math.min(Math.max(label.y, top + gap / 2), top + height - gap / 2);
    for (let at = 1; at < labels.length; at += 1) labels[at].y = Math.max(labels[at].y, labels[at - 1].y + gap);
    for (let at = labels.length - 1, most = top + height - gap / 2; at >= 0; at -= 1, most -= gap) {
      labels[at].y = Math.min(labels[at].y, most);
    }
    context.save();
    context.font = `${12 * ratio}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    context.textAlign = "left";
    for (const label of labels) {
      context.fillStyle = colour(seriesColour(label.at));
      let name = block.names[label.at];
      while (name.length > 4 && context.measureText(name).width > (LABELS - 12) * ratio) name = `${name.slice(0, -2)}…`;
      context.fillText(name, left + width + 8 * ratio, label.y);
    }
    context.restore();
  }

  function drawChart(block) {
    const id = newId();
    const box = html("div", { class: "block chart" });
    const plot = html("div", {
      class: "plot",
      tabindex: "0",
      role: "application",
      "aria-roledescription": "chart",
      "aria-label": `${block.title}, ${block.unit}: ${block.names.join(", ")}`,
      "aria-describedby": id,
    });
    const values = block.names.map(() => html("span", { class: "value" }));
    const toggles = block.names.map((name, at) => {
      const button = html("button", { type: "button", "aria-pressed": "true" }, swatch(block.style, at), html("span", { text: name }));
      button.addEventListener("click", () => {
        const isShown = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(isShown));
        chart.setSeries(at + 1, { show: isShown });
      });
      return html("span", { class: "key" }, button, values[at]);
    });
    const when = html("span", { class: "when" });
    const live = html("p", { class: "unseen", "aria-live": "polite", id, text: "Arrow keys read values, plus and minus zoom, shift and arrows move, 0 shows all." });
    box.append(
      html("h3", {}, block.title, html("span", { class: "unit", text: ` ${block.unit}` })),
      ...[note(block.note)].filter(Boolean),
      html("div", { class: "keys" }, ...toggles, when),
      plot,
      live,
    );

    let chart;
    // A value holds for the length of its interval, the last one, too.
    const data = [block.x.slice(), ...block.y.map((ys) => ys.slice())];
    if (block.length && block.x.length) {
      data[0].push(block.x[block.x.length - 1] + block.length);
      for (const ys of data.slice(1)) ys.push(ys[ys.length - 1]);
    }

    // A step that began before the time that is shown is still there.
    function greatestStep() {
      let greatest = 0;
      data.slice(1).forEach((ys, series) => {
        if (!chart.series[series + 1].show) return;
        ys.forEach((y, at) => {
          const ends = at + 1 < data[0].length ? data[0][at + 1] : data[0][at];
          if (data[0][at] <= range[1] && ends >= range[0]) greatest = Math.max(greatest, y ?? 0);
        });
      });
      return greatest;
    }

    function read(chart, isSaid) {
      const at = chart.cursor.idx;
      const isThere = at !== null && at !== undefined && chart.cursor.left >= 0;
      const said = [];
      block.names.forEach((name, series) => {
        const value = isThere ? data[series + 1][at] : null;
        values[series].textContent = value === null || value === undefined ? "" : number(value, block.digits);
        if (value !== null && value !== undefined) said.push(`${name} ${number(value, block.digits)}`);
      });
      when.textContent = isThere ? `at ${clock(data[0][at], (range[1] - range[0]) / 1000)}` : "";
      cursor = isThere ? data[0][at] : null;
      if (isSaid && isThere) live.textContent = `${when.textContent}: ${said.join(", ")} ${block.unit}`;
    }

    const size = () => ({ width: Math.max(240, plot.clientWidth), height: window.innerWidth < 600 ? 190 : 220 });
    const axis = { stroke: () => colour("muted"), grid: { stroke: () => colour("grid"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const padding = (width) => [10, hasLabels(width) ? LABELS : 12, 0, 0];
    const options = () => ({
      ...size(),
      padding: padding(size().width),
      legend: { show: false },
      scales: {
        x: { time: false, min: whole[0], max: whole[1] },
        y: {
          range: (_chart, _least, most) => {
            if (block.most) return [0, block.most];
            const greatest = block.style === "steps" && chart ? greatestStep() : most;
            return [0, greatest > 0 ? greatest * 1.06 : 1];
          },
        },
      },
      axes: [
        { ...axis, size: 32, space: 84, incrs: STEPS, values: (_chart, splits, _axis, _space, step) => splits.map((at) => clock(at, step || 1)) },
        { ...axis, size: 58, space: 34, values: (_chart, splits) => splits.map(tick) },
      ],
      series: [{}, ...block.names.map((_name, at) => series(block, at))],
      cursor: {
        sync: { key: "time" },
        drag: { x: true, y: false, setScale: false },
        points: { size: 7, fill: (_chart, at) => colour(seriesColour(at - 1)), stroke: () => colour("ground") },
        bind: { dblclick: () => () => { reset(); return null; } },
      },
      hooks: {
        draw: [
          (chart) => { if (block.style === "points") drawPoints(chart, block); },
          (chart) => { if (block.means) drawMeans(chart, block); },
          (chart) => drawLabels(chart, block),
        ],
        setCursor: [(chart) => read(chart, false)],
        setSelect: [
          (chart) => {
            if (chart.select.width < 4) return;
            const from = chart.posToVal(chart.select.left, "x");
            const to = chart.posToVal(chart.select.left + chart.select.width, "x");
            chart.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
            setRange(from, to);
          },
        ],
      },
    });
    const start = () => {
      chart = new uPlot(options(), data, plot);
      plot.addEventListener("keydown", (event) => {
        if (timeKey(event)) return;
        const ways = { ArrowLeft: -1, ArrowRight: 1, PageUp: -25, PageDown: 25, Home: -Infinity, End: Infinity };
        const way = ways[event.key];
        if (way === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
        event.preventDefault();
        const xs = data[0];
        let first = xs.findIndex((x) => x >= range[0]);
        let last = xs.length - 1;
        while (last > 0 && xs[last] > range[1]) last -= 1;
        if (first < 0) first = last;
        const now = cursor === null ? (way > 0 ? first - 1 : last + 1) : chart.cursor.idx;
        const at = Math.max(first, Math.min(last, way === -Infinity ? first : way === Infinity ? last : now + way));
        for (const view of views) view.point(xs[at]);
        chart.setCursor({ left: chart.valToPos(xs[at], "x"), top: 20 });
        read(chart, true);
      });
    };
    views.push({
      start,
      show: ([from, to]) => chart.setScale("x", { min: from, max: to }),
      point: (at) => chart.setCursor({ left: chart.valToPos(at, "x"), top: 20 }),
      resize: () => {
        const now = size();
        chart.padding = padding(now.width);
        if (now.width !== chart.width || now.height !== chart.height) chart.setSize(now);
      },
      redraw: () => chart.redraw(false, true),
    });
    const columns = [
      { name: "at s", kind: "number", digits: 6 },
      ...block.names.map((name) => ({ name: `${name}, ${block.unit}`, kind: "number", digits: block.digits })),
    ];
    const rowsOf = (of) => of.x.map((x, at) => [x, ...of.y.map((ys) => ys[at])]);
    box.append(numbersOf(block.title, columns, rowsOf(block)));
    if (block.means) {
      const middle = [{ ...columns[0], name: "around s" }, ...columns.slice(1).map((column) => ({ ...column, digits: Math.max(3, column.digits) }))];
      box.append(numbersOf(`${block.title}, means`, middle, rowsOf(block.means), "The means"));
    }
    return box;
  }

  // ---- Histograms -----------------------------------------------------------------------------------------------

  function logTicks(from, to) {
    const found = [];
    for (let power = Math.floor(Math.log10(from)); power <= Math.ceil(Math.log10(to)); power += 1) {
      for (const factor of to / from > 8 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9]) {
        const at = factor * 10 ** power;
        if (at >= from && at <= to) found.push(at);
      }
    }
    return found;
  }

  function drawHistogram(block) {
    const all = block.counts.reduce((sum, count) => sum + count, 0);
    const marks = block.marks.map(([name, value]) => `${name} ${number(value, 3)} ${block.unit}`).join(", ");
    const plot = html("div", { class: "plot" });
    const box = html("div", { class: "block half" }, html("h3", {}, block.title, html("span", { class: "unit", text: ` ${block.unit}` })), plot);
    const [first, last] = [block.edges[0], block.edges[block.edges.length - 1]];
    function draw() {
      const width = Math.max(240, plot.clientWidth);
      const height = 176;
      const margin = { left: 44, right: 12, top: 42, bottom: 24 };
      const inner = { width: width - margin.left - margin.right, height: height - margin.top - margin.bottom };
      const x = (value) => margin.left + (inner.width * Math.log(value / first)) / Math.log(last / first);
      const most = Math.max(...block.counts);
      const y = (count) => margin.top + inner.height * (1 - count / most);
      const picture = svg("svg", { width, height, role: "img", "aria-label": `${block.title}: ${number(all, 0)} samples, ${marks}` });
      const floor = margin.top + inner.height;
      for (const count of [most, most / 2]) {
        picture.append(
          svg("line", { class: "gridline", x1: margin.left, x2: width - margin.right, y1: y(count), y2: y(count) }),
          svg("text", { x: margin.left - 6, y: y(count) + 4, "text-anchor": "end", text: tick(Math.round(count * 10) / 10) }),
        );
      }
      block.counts.forEach((count, at) => {
        const left = x(block.edges[at]);
        const wide = Math.max(1, x(block.edges[at + 1]) - left - 1);
        // What was seen once is seen here, too.
        const top = count ? Math.min(y(count), floor - 1.5) : floor;
        picture.append(svg("rect", { class: "column", x: left, y: top, width: wide, height: floor - top }));
      });
      picture.append(svg("line", { class: "base", x1: margin.left, x2: width - margin.right, y1: floor, y2: floor }));
      let free = -Infinity;
      for (const at of logTicks(first, last)) {
        if (x(at) - free < 44) continue;
        free = x(at);
        picture.append(svg("text", { x: x(at), y: height - 6, "text-anchor": "middle", text: tick(at) }));
      }
      // Each name stands on a line of its own: marks may be close to each other.
      block.marks.forEach(([name, value], row) => {
        const at = Math.min(Math.max(x(Math.max(value, first)), margin.left), width - margin.right);
        const label = `${name} ${number(value, value >= 100 ? 0 : value >= 1 ? 2 : 4)}`;
        const isLeft = at > width - 90;
        picture.append(
          svg("line", { class: "mark", x1: at, x2: at, y1: 2 + row * 12, y2: floor }),
          svg("text", { class: "mark", x: at + (isLeft ? -4 : 4), y: 11 + row * 12, "text-anchor": isLeft ? "end" : "start", text: label }),
        );
      });
      plot.replaceChildren(picture);
    }
    views.push({ start: draw, show: () => {}, point: () => {}, resize: draw, redraw: () => {} });
    const columns = [
      { name: `from ${block.unit}`, kind: "number", digits: 4 },
      { name: `to ${block.unit}`, kind: "number", digits: 4 },
      { name: "samples", kind: "number", digits: 0 },
    ];
    box.append(numbersOf(block.title, columns, block.counts.map((count, at) => [block.edges[at], block.edges[at + 1], count])));
    return box;
  }

  // ---- Heat maps --------------------------------------------------------------------------------------------------

  const channels = (text) => text.match(/[\d.]+/g).slice(0, 3).map(Number);
  // How light a colour looks, and how far two of them are apart (WCAG 2).
  function lightness(colour) {
    const [red, green, blue] = colour.map((value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  }
  const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);

  // From the page's ground to one colour: what is told apart is how dark it is, not which colour.
  function shade(part) {
    const [ground, full] = [channels(colour("ground")), channels(colour("s0"))];
    return ground.map((value, at) => value + (full[at] - value) * (0.04 + 0.96 * part));
  }
  const css = (colour) => `rgb(${colour.map(Math.round).join(" ")})`;

  function drawHeatMap(block) {
    const most = block.values.reduce((most, row) => row.reduce((most, value) => Math.max(most, value ?? 0), most), 0) || 1;
    const say = (value) => (value === null ? "not known" : `${number(value, block.digits)} ${block.unit}`);
    const where = ([row, column]) => `${block.rows[row]}, ${block.across} ${block.columns[column]}: ${say(block.values[row][column])}`;
    const id = newId();
    const canvas = html("canvas", { "aria-hidden": "true" });
    const plot = html("div", {
      class: "plot",
      tabindex: "0",
      role: "application",
      "aria-roledescription": "heat map",
      "aria-label": `${block.title}, ${block.unit}: ${block.rows.length} rows by ${block.down}, ${block.columns.length} columns by ${block.across}`,
      "aria-describedby": id,
    }, canvas);
    const value = html("span", { class: "value" });
    const scale = html("span", { class: "scale", "aria-hidden": "true" });
    const legend = html("div", { class: "keys" }, html("span", { class: "key" }, html("span", { text: "0" }), scale, html("span", { text: say(most) })), value);
    const live = html("p", { class: "unseen", "aria-live": "polite", id, text: "Arrow keys read values." });
    const box = html("div", { class: "block heatmap" }, html("h3", {}, block.title, html("span", { class: "unit", text: ` ${block.unit}` })), note(block.note), legend, plot, live);
    let chosen = null;
    let place = null;

    function draw() {
      const ratio = window.devicePixelRatio || 1;
      const width = Math.max(240, plot.clientWidth);
      const context = canvas.getContext("2d");
      const font = "12px system-ui, sans-serif";
      context.font = font;
      const widest = Math.max(...block.rows.map((name) => context.measureText(name).width));
      const left = Math.min(Math.ceil(widest) + 10, width * 0.4);
      const wide = (width - left - 2) / block.columns.length;
      const high = Math.max(4, Math.min(24, 480 / block.rows.length));
      const height = block.rows.length * high + 36;
      canvas.width = width * ratio;
      canvas.height = height * ratio;
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
      context.scale(ratio, ratio);
      context.font = font;
      context.textBaseline = "middle";
      const gap = wide > 6 && high > 6 ? 1 : 0;
      const [ground, text] = [channels(colour("ground")), channels(colour("text"))];
      const room = Math.max(...block.values.flat().map((value) => (value === null ? 0 : context.measureText(number(value, block.digits)).width))) + 6;
      block.values.forEach((values, row) => {
        values.forEach((value, column) => {
          const [x, y] = [left + column * wide, row * high];
          if (value === null) return;
          const cell = shade(Math.max(0, value) / most);
          context.fillStyle = css(cell);
          context.fillRect(x, y, Math.max(0.5, wide - gap), Math.max(0.5, high - gap));
          if (wide < room || high < 15) return;
          const [light, dark] = [ground, text].map((ink) => contrast(lightness(ink), lightness(cell)));
          context.fillStyle = css(light > dark ? ground : text);
          context.textAlign = "center";
          context.fillText(number(value, block.digits), x + (wide - gap) / 2, y + (high - gap) / 2 + 0.5);
        });
      });
      context.fillStyle = colour("muted");
      const short = (name) => {
        let shown = name;
        while (shown.length > 4 && context.measureText(shown).width > left - 8) shown = `${shown.slice(0, -2)}…`;
        return shown;
      };
      context.textAlign = "right";
      const everyRow = Math.ceil(14 / high);
      block.rows.forEach((name, row) => {
        if (row % everyRow === 0) context.fillText(short(name), left - 6, (row + 0.5) * high);
      });
      context.textAlign = "center";
      const everyColumn = Math.ceil((Math.max(...block.columns.map((name) => context.measureText(name).width)) + 10) / wide);
      const floor = block.rows.length * high;
      block.columns.forEach((name, column) => {
        if (column % everyColumn === 0) context.fillText(name, left + (column + 0.5) * wide, floor + 10);
      });
      context.fillText(block.across, left + (width - left) / 2, floor + 27);
      if (chosen) {
        const [row, column] = chosen;
        context.strokeStyle = colour("text");
        context.lineWidth = 2;
        context.strokeRect(left + column * wide, row * high, Math.max(2, wide - gap), Math.max(2, high - gap));
      }
      place = { left, wide, high };
    }

    function choose(next, isSaid) {
      chosen = next;
      value.textContent = chosen ? where(chosen) : "";
      if (isSaid && chosen) live.textContent = where(chosen);
      draw();
    }
    canvas.addEventListener("mousemove", (event) => {
      const column = Math.floor((event.offsetX - place.left) / place.wide);
      const row = Math.floor(event.offsetY / place.high);
      const isThere = column >= 0 && column < block.columns.length && row >= 0 && row < block.rows.length;
      const next = isThere ? [row, column] : null;
      if (String(next) !== String(chosen)) choose(next, false);
    });
    canvas.addEventListener("mouseleave", () => choose(null, false));
    plot.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
      const ways = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -Infinity], End: [0, Infinity] };
      const way = ways[event.key];
      if (!way) return;
      event.preventDefault();
      const moved = (at, by, count) => Math.max(0, Math.min(count - 1, at + by));
      choose(chosen ? [moved(chosen[0], way[0], block.rows.length), moved(chosen[1], way[1], block.columns.length)] : [0, 0], true);
    });
    views.push({ start: draw, show: () => {}, point: () => {}, resize: draw, redraw: draw });
    const columns = [{ name: block.down, kind: "text", digits: 0 }, ...block.columns.map((name) => ({ name: `${block.across} ${name}`, kind: "number", digits: block.digits }))];
    box.append(numbersOf(block.title, columns, block.rows.map((name, row) => [name, ...block.values[row]])));
    return box;
  }

  // ---- The waterfall --------------------------------------------------------------------------------------------

  const PARTS = [
    ["front_end", "front end"],
    ["queue", "queue"],
    ["prefill", "prefill"],
    ["decode", "decode"],
    ["preempted", "preempted"],
    ["delivery", "delivery"],
  ];

  // Parts of a request's life with their times: what did not happen has none.
  function partsOf(request) {
    const end = request.finished ?? page.range[1];
    const parts = [];
    let now = request.arrived ?? request.queued ?? request.started;
    const until = (name, at) => {
      if (at === null || at <= now) return;
      parts.push([name, now, at]);
      now = at;
    };
    until("front_end", request.queued);
    until("queue", request.started ?? end);
    until("prefill", request.first_token ?? request.left_engine ?? end);
    until("decode", request.left_engine ?? end);
    until("delivery", request.finished);
    if (request.preempted !== null) parts.push(["preempted", request.preempted, request.resumed ?? end]);
    return parts;
  }

  function drawWaterfall(block) {
    const ROW = 16;
    const legend = html("div", { class: "keys" });
    for (const [name, text] of PARTS) {
      const picture = svg("svg", { width: 28, height: 12, "aria-hidden": "true", class: "swatch" }, svg("rect", { class: `part ${name}`, x: 0.5, y: 1.5, width: 27, height: 9 }));
      legend.append(html("span", { class: "key" }, picture, html("span", { text })));
    }
    const aligned = html("input", { type: "checkbox", id: newId() });
    legend.append(html("span", { class: "key" }, aligned, html("label", { for: aligned.id, text: "line up at the arrival" })));
    const axis = html("div", { class: "axis" });
    const rows = html("div", { class: "rows scroll", tabindex: "0", role: "region", "aria-label": `${block.title}; plus and minus zoom, shift and arrows move, 0 shows all` });
    const count = html("p", { class: "note", role: "status" });
    const box = html("div", { class: "block" }, html("h3", { text: block.title }), note(block.note), legend, axis, rows, count);
    // Patterns are named once for the whole page.
    box.append(
      svg("svg", { width: 0, height: 0, "aria-hidden": "true", class: "unseen" }, svg("defs", {},
        svg("pattern", { id: "hatched", width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
          svg("rect", { class: "hatch-ground", width: 5, height: 5 }), svg("line", { class: "hatch", x1: 0, x2: 0, y1: 0, y2: 5 })),
        svg("pattern", { id: "dotted", width: 4, height: 4, patternUnits: "userSpaceOnUse" },
          svg("rect", { class: "dot-ground", width: 4, height: 4 }), svg("circle", { class: "dot", cx: 2, cy: 2, r: 1 })))),
    );
    const lives = block.requests.map((request) => ({ request, parts: partsOf(request) }));
    const begin = (life) => life.parts.reduce((least, part) => Math.min(least, part[1]), Infinity);
    const end = (life) => life.parts.reduce((most, part) => Math.max(most, part[2]), -Infinity);
    // Requests of seconds in a run of an hour are dots; lined up they can be compared.
    const longest = lives.reduce((most, life) => Math.max(most, end(life) - begin(life)), 0);
    aligned.checked = longest > 0 && longest < (whole[1] - whole[0]) / 20;
    aligned.addEventListener("change", draw);
    function draw() {
      const width = Math.max(300, rows.clientWidth);
      const names = width < 600 ? 96 : 190;
      const shown = lives.filter((life) => begin(life) <= range[1] && end(life) >= range[0]);
      const most = shown.reduce((most, life) => Math.max(most, end(life) - begin(life)), 0);
      const [from, to] = aligned.checked ? [0, most || 1] : range;
      const x = (at) => names + ((width - names - 8) * (at - from)) / (to - from);
      const clip = (at) => Math.min(Math.max(x(at), names), width - 4);
      const seen = shown.map(({ request, parts }) => {
        const zero = aligned.checked ? begin({ parts }) : 0;
        return { request, parts: parts.map(([name, a, b]) => [name, a - zero, b - zero]) };
      });
      const picture = svg("svg", { width, height: Math.max(ROW, seen.length * ROW), role: "img", "aria-label": `${seen.length} requests; the table below has their times` });
      seen.forEach(({ request, parts }, row) => {
        const y = row * ROW;
        const room = Math.floor((names - 14) / 7.2);
        const id = request.id.length > room ? `${request.id.slice(0, room - 1)}…` : request.id;
        const words = parts.map(([name, a, b]) => `${PARTS.find((part) => part[0] === name)[1]} ${number(b - a, 4)} s`);
        const bar = svg("g", {}, svg("title", { text: `${request.id}: ${words.join(", ")}; ${request.reason}` }));
        if (row % 2) bar.append(svg("rect", { class: "stripe", x: 0, y, width, height: ROW }));
        bar.append(svg("text", { x: 2, y: y + 12, text: id }));
        for (const [name, a, b] of parts) {
          if (b < from || a > to) continue;
          const thin = name === "front_end" || name === "delivery";
          bar.append(svg("rect", { class: `part ${name}`, x: clip(a), y: y + (thin ? 6 : 3), width: Math.max(0.75, clip(b) - clip(a)), height: thin ? 4 : 10 }));
        }
        picture.append(bar);
      });
      rows.replaceChildren(picture);
      const scale = svg("svg", { width, height: 20, "aria-hidden": "true" });
      const least = (to - from) / Math.max(2, (width - names) / 110);
      const step = STEPS.find((step) => step >= least) || least;
      for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
        scale.append(svg("line", { class: "gridline", x1: x(at), x2: x(at), y1: 15, y2: 20 }), svg("text", { x: Math.min(x(at), width - 22), y: 12, "text-anchor": "middle", text: clock(at, step) }));
      }
      axis.replaceChildren(scale);
      count.textContent = seen.length === lives.length ? "" : `${seen.length} of ${lives.length} requests in the time that is shown`;
    }
    rows.addEventListener("keydown", timeKey);
    views.push({ start: draw, show: draw, point: () => {}, resize: draw, redraw: () => {} });
    const fields = [["arrived", 4], ["queued", 4], ["started", 4], ["preempted", 4], ["resumed", 4], ["first_token", 4], ["left_engine", 4], ["finished", 4], ["preemptions", 0], ["prompt_tokens", 0], ["output_tokens", 0]];
    const columns = [
      { name: "request", kind: "text", digits: 0 },
      ...fields.map(([name, digits]) => ({ name: name.replace("_", " ") + (digits ? " s" : ""), kind: "number", digits })),
      { name: "ended", kind: "text", digits: 0 },
    ];
    box.append(numbersOf(block.title, columns, block.requests.map((request) => [request.id, ...fields.map(([name]) => request[name]), request.reason])));
    return box;
  }

  // ---- Findings -------------------------------------------------------------------------------------------------

  function drawFinding(block) {
    const box = html("div", { class: `block finding ${block.severity}` });
    box.append(html("h3", {}, html("span", { class: "severity", text: block.severity }), ` ${block.title}`));
    if (block.changes.length) {
      box.append(html("ul", { class: "changes" }, ...block.changes.map((text) => html("li", { text }))));
    }
    if (block.expect) box.append(html("p", { text: block.expect }));
    box.append(html("p", { class: "note", text: block.confidence }));
    const columns = [{ name: "measured", kind: "text", digits: 0 }, { name: "value", kind: "number", digits: 2 }, { name: "unit", kind: "text", digits: 0 }];
    const looked = block.proof.length ? `Look it up: ${block.proof.join(", ")}.` : null;
    if (block.evidence.length) {
      box.append(folded("What it rests on", () => [scroller(`Evidence: ${block.title}`, plainTable(block.title, columns, block.evidence)), note(looked)]));
    }
    return box;
  }

  // ---- Changes with their intervals -----------------------------------------------------------------------------

  function drawIntervals(block) {
    const ROW = 20;
    const plot = html("div", { class: "plot" });
    const box = html("div", { class: `block intervals ${block.word.split(" ")[0]}` }, html("h3", { text: block.title }), note(block.note), plot);
    // What lies far out is cut, and its number says where it is.
    const most = Math.min(100, Math.max(0.1, ...block.rows.flatMap((row) => [Math.abs(row.low ?? 0), Math.abs(row.high ?? 0)])) * 1.05);
    function draw() {
      const width = Math.max(300, plot.clientWidth);
      const isWide = width > 640;
      const margin = isWide ? { left: 250, right: 190 } : { left: 8, right: 8 };
      const row = isWide ? ROW : 2 * ROW;
      const x = (value) => margin.left + ((width - margin.left - margin.right) * (Math.min(Math.max(value, -most), most) + most)) / (2 * most);
      const height = block.rows.length * row + 22;
      const picture = svg("svg", { width, height, role: "img", "aria-label": `${block.title}: ${block.rows.length} figures; the table below has their numbers` });
      const floor = height - 20;
      const step = STEPS.find((step) => step >= (2 * most) / (isWide ? 8 : 4)) || most;
      for (let at = -Math.floor(most / step) * step; at <= most; at += step) {
        picture.append(
          svg("line", { class: at ? "gridline" : "base", x1: x(at), x2: x(at), y1: 0, y2: floor }),
          svg("text", { x: x(at), y: height - 5, "text-anchor": "middle", text: `${at > 0 ? "+" : ""}${+at.toPrecision(3)}` }),
        );
      }
      picture.append(svg("line", { class: "base", x1: x(0), x2: x(0), y1: 0, y2: floor }));
      block.rows.forEach((change, at) => {
        const y = at * row + row - 10;
        picture.append(
          svg("text", { class: "name", x: isWide ? margin.left - 10 : 0, y: isWide ? y + 4 : y - 12, "text-anchor": isWide ? "end" : "start", text: change.name }),
          svg("text", { x: width, y: isWide ? y + 4 : y - 12, "text-anchor": "end", text: change.shown }),
          svg("line", { class: "whisker", x1: x(change.low), x2: x(change.high), y1: y, y2: y }),
          svg("circle", { class: "change", cx: x(change.change), cy: y, r: 4 }),
        );
      });
      plot.replaceChildren(picture);
    }
    views.push({ start: draw, show: () => {}, point: () => {}, resize: draw, redraw: () => {} });
    return box;
  }

  // ---- The page -------------------------------------------------------------------------------------------------

  const KINDS = {
    sentence: (block) => html("p", { text: block.text }),
    table: drawTable,
    chart: drawChart,
    histogram: drawHistogram,
    heat_map: drawHeatMap,
    waterfall: drawWaterfall,
    finding: drawFinding,
    intervals: drawIntervals,
  };

  function button(text, label, act) {
    const made = html("button", { type: "button", text, "aria-label": label, title: label });
    made.addEventListener("click", act);
    return made;
  }

  const theme = html("select", { id: "theme" }, ...[["", "as the system"], ["light", "light"], ["dark", "dark"]].map(([value, text]) => html("option", { value, text })));
  function setTheme(value) {
    if (value) root.setAttribute("data-theme", value);
    else root.removeAttribute("data-theme");
    recolour();
  }
  function recolour() {
    colours = new Map();
    for (const view of views) view.redraw();
  }
  theme.addEventListener("change", () => {
    setTheme(theme.value);
    try { localStorage.setItem("profilemate-theme", theme.value); } catch (_) { /* a file may have no storage */ }
  });

  function build() {
    document.body.append(probe);
    const hasTime = page.sections.some((section) => section.blocks.some((block) => block.kind === "chart" || block.kind === "waterfall"));
    const controls = html("div", { class: "controls", role: "group", "aria-label": "Time that the charts show" },
      rangeText,
      button("−", "Zoom out", () => zoom(2)), button("+", "Zoom in", () => zoom(0.5)),
      button("←", "Earlier", () => pan(-0.2)), button("→", "Later", () => pan(0.2)),
      button("Whole run", "Show the whole run", reset));
    const links = page.sections.map((section) => html("li", {}, html("a", { href: `#${section.id}`, text: section.title })));
    const header = html("header", {},
      html("div", { class: "title" },
        html("h1", { text: page.title }),
        html("p", { class: "about" }, ...page.about.map((text) => html("span", { text })))),
      html("label", { class: "theme", for: "theme" }, html("span", { text: "Theme" }), theme));
    const main = html("main");
    for (const text of page.warnings) main.append(html("p", { class: "warning", text }));
    if (page.figures.length) {
      main.append(html("section", { "aria-label": "Summary" }, html("dl", { class: "figures" }, ...page.figures.map((figure) =>
        html("div", {}, html("dt", { text: figure.label }), html("dd", {}, html("span", { class: "big", text: figure.value }), figure.note ? html("span", { class: "small", text: figure.note }) : null))))));
    }
    for (const section of page.sections) {
      const heading = html("h2", { id: section.id, tabindex: "-1", text: section.title });
      const box = html("section", { "aria-labelledby": section.id }, heading, section.lead ? html("p", { class: "lead", text: section.lead }) : null);
      // Histograms, and tables that are open, stand side by side where there is room.
      let beside = null;
      let kind = null;
      for (const block of section.blocks) {
        const drawn = KINDS[block.kind](block);
        const now = block.kind === "histogram" ? "halves" : block.kind === "table" && !block.is_folded ? "tables" : null;
        if (now && now !== kind) box.append((beside = html("div", { class: now })));
        (now ? beside : box).append(drawn);
        kind = now;
      }
      main.append(box);
    }
    if (hasTime) {
      main.append(html("section", { class: "help", "aria-labelledby": "keys" },
        html("h2", { id: "keys", text: "Keys and mouse" }),
        html("p", { text: "All charts over time show the same stretch of the run and point at the same moment. Drag over a chart to zoom in, double-click to see the whole run. A button over a chart hides or shows its series." }),
        html("p", { text: "Tab goes from chart to chart. In a chart: ← and → read its values one by one, Page Up and Page Down in bigger steps, Home and End go to the ends; + and − zoom around the value, Shift with ← and → moves, 0 or Escape shows the whole run." })));
      links.push(html("li", {}, html("a", { href: "#keys", text: "Keys and mouse" })));
    }
    const nav = html("nav", { "aria-label": "Sections" }, html("ul", {}, ...links));
    const bar = hasTime ? html("div", { class: "timebar", role: "region", "aria-label": "Time" }, controls) : null;
    document.body.append(header, html("div", { class: "columns" }, nav, html("div", { class: "content" }, bar, main)));
    document.title = page.title;
    let stored = "";
    try { stored = localStorage.getItem("profilemate-theme") || ""; } catch (_) { /* as above */ }
    if (stored === "light" || stored === "dark") {
      theme.value = stored;
      root.setAttribute("data-theme", stored);
    }
    for (const view of views) view.start();
    showRange();
    checkScrollers();
    let width = window.innerWidth;
    window.addEventListener("resize", () => {
      if (window.innerWidth === width) return;
      width = window.innerWidth;
      requestAnimationFrame(() => {
        for (const view of views) view.resize();
        checkScrollers();
      });
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
    root.setAttribute("data-drawn", "true");
  }

  build();
})();

"use strict";
// The tables are in the page; this shows a part of them, sorts them, draws the figures and hands both out.
(() => {
  const suites = JSON.parse(document.getElementById("model").textContent);
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const control = (name) => document.getElementById(name);
  const state = { limit: "mean", family: "all", task: "", policy: "" };
  const views = new Map(); // drawn figures, by their place

  document.documentElement.classList.add("scripted");
  control("controls").hidden = suites.length === 0;

  const option = (value, text) => Object.assign(document.createElement("option"), { value, textContent: text });
  const limits = new Map(suites.flatMap((suite) => suite.limits.map((one) => [one.key, one.label])));
  control("limit").append(...[...limits].map(([key, label]) => option(key, label)));
  const families = [...new Set(suites.flatMap((suite) => suite.families))];
  control("family").append(option("all", "all"), ...families.map((name) => option(name, name)));

  // The address says what is shown, so that a link shows the same.
  const read = () => {
    const given = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
    for (const name of Object.keys(state)) state[name] = given.get(name) ?? { limit: "mean", family: "all" }[name] ?? "";
    if (!limits.has(state.limit)) state.limit = "mean";
    if (!families.includes(state.family)) state.family = "all";
    for (const name of Object.keys(state)) control(name).value = state[name];
  };
  const write = () => {
    const said = Object.entries(state).filter(([name, value]) => value !== ({ limit: "mean", family: "all" }[name] ?? ""));
    history.replaceState(null, "", said.length ? `#${new URLSearchParams(said)}` : location.pathname + location.search);
  };

  const show = () => {
    for (const view of all(".view")) {
      const [family, limit] = view.dataset.view.split(":");
      const table = view.querySelector("table").dataset.name;
      const suite = suites[view.closest(".suite").dataset.suite];
      const wanted = table === "leaderboard" && suite.families.includes(state.family) ? state.family : "all";
      const known = suite.limits.some((one) => one.key === state.limit) ? state.limit : "mean";
      view.classList.toggle("chosen", family === wanted && limit === known);
    }
    const narrow = (text, wanted) => !text.toLowerCase().includes(wanted.trim().toLowerCase());
    let tasks = 0;
    for (const element of all("[data-task]")) {
      const other = state.family !== "all" && families.length > 0 && element.dataset.family !== state.family;
      const hidden = other || narrow(element.dataset.task, state.task);
      element.classList.toggle("filtered", hidden);
      if (!hidden && element.matches("details.task")) tasks += 1;
    }
    for (const row of all("tr[data-policy]")) row.classList.toggle("filtered", narrow(row.dataset.policy, state.policy));
    control("shown").textContent = `${tasks} of ${all("details.task").length} tasks`;
    for (const view of views.values()) steer(view);
  };

  // Figures
  const shownTask = (suite) => {
    const section = document.getElementById(`suite-${suite}`);
    const open = section.querySelector("details.task[open]:not(.filtered)") ?? section.querySelector("details.task:not(.filtered)");
    return open?.dataset.id;
  };
  const steer = ({ view, suite }) => {
    const signals = { limit: state.limit, task: shownTask(suite) };
    for (const [name, value] of Object.entries(signals)) {
      try { if (value !== undefined) view.signal(name, value); } catch { /* this figure has no such parameter */ }
    }
    view.runAsync();
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const draw = async (place) => {
    const suite = place.dataset.suite;
    const name = place.dataset.chart;
    const spec = charts[suite][name];
    const drawn = document.createElement("div");
    const bar = document.createElement("div");
    place.replaceChildren(drawn, bar);
    const options = { actions: false, renderer: "svg", theme: dark.matches ? "dark" : undefined, config: { background: "transparent" } };
    const { view } = await vegaEmbed(drawn, spec, options);
    views.set(place, { view, suite });
    steer(views.get(place));
    for (const kind of ["svg", "png"]) {
      const save = button(kind.toUpperCase(), `Save this figure as ${kind.toUpperCase()}`, async () => {
        const url = await view.toImageURL(kind, kind === "png" ? 2 : 1);
        hand(url, `${suites[suite].suite}-${name}.${kind}`);
      });
      bar.append(save);
    }
  };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { watcher.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "300px" });
  for (const place of all(".chart")) watcher.observe(place);
  dark.addEventListener("change", () => [...views.keys()].forEach(draw));
  addEventListener("beforeprint", () => all(".chart").filter((place) => !views.has(place)).forEach(draw));

  // Tables
  const button = (text, title, act) => {
    const made = Object.assign(document.createElement("button"), { type: "button", textContent: text, title, className: "save" });
    made.addEventListener("click", act);
    return made;
  };
  const hand = (url, name) => {
    const link = Object.assign(document.createElement("a"), { href: url, download: name });
    document.body.append(link);
    link.click();
    link.remove();
  };
  const said = (cell) => [...cell.childNodes].map((node) => (node.className === "interval" ? ` (${node.textContent})` : node.textContent)).join("").replace(/\s+/g, " ").trim();
  const cells = (row) => [...row.cells].filter((cell) => !cell.classList.contains("filtered")).map(said);
  const contents = (table) => {
    const header = cells(table.tHead.rows[0]);
    const rows = [...table.tBodies[0].rows].filter((row) => !row.classList.contains("filtered")).map(cells);
    return [header, rows];
  };
  const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const tex = (text) => text.replace(/[\\{}$&#_%^~≤✓✗]/g, (sign) => ({ "\\": "\\textbackslash{}", "^": "\\^{}", "~": "\\~{}", "≤": "$\\leq$", "✓": "", "✗": "" })[sign] ?? `\\${sign}`).trim();
  const formats = {
    csv: ([header, rows]) => [header, ...rows].map((row) => row.map(quoted).join(",")).join("\n") + "\n",
    md: ([header, rows]) => [header, header.map(() => "---"), ...rows].map((row) => `| ${row.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`).join("\n") + "\n",
    tex: ([header, rows]) => `\\begin{tabular}{${"l".repeat(header.length)}}\n\\toprule\n${header.map(tex).join(" & ")} \\\\\n\\midrule\n${rows.map((row) => row.map(tex).join(" & ") + " \\\\").join("\n")}\n\\bottomrule\n\\end{tabular}\n`,
    json: ([header, rows]) => JSON.stringify({ columns: header, rows }, null, 1) + "\n",
  };
  for (const table of all("table")) {
    const suite = table.closest(".suite").dataset.suite;
    const bar = document.createElement("div");
    for (const [kind, made] of Object.entries(formats)) {
      bar.append(button(kind.toUpperCase(), `Save this table as ${kind.toUpperCase()}`, () => {
        const url = URL.createObjectURL(new Blob([made(contents(table))], { type: "text/plain" }));
        hand(url, `${suites[suite].suite}-${table.dataset.name}.${kind}`);
        URL.revokeObjectURL(url);
      }));
    }
    table.closest(".wide").after(bar);
  }
  const worth = (cell) => {
    const text = cell.dataset.value ?? cell.textContent.trim();
    const value = Number.parseFloat(text);
    return text === "" || text === "-" ? null : Number.isNaN(value) ? text.toLowerCase() : value;
  };
  for (const table of all("table.sortable")) {
    for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
      const sort = Object.assign(document.createElement("button"), { type: "button", textContent: head.textContent });
      head.replaceChildren(sort);
      sort.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const sign = down ? -1 : 1;
        const rows = [...table.tBodies[0].rows].map((row) => [worth(row.cells[column]), row]);
        rows.sort(([one], [two]) => (one === null) - (two === null) || sign * (one < two ? -1 : one > two ? 1 : 0));
        table.tBodies[0].append(...rows.map(([, row]) => row)); // what has no value stays last
      });
    }
  }

  for (const name of Object.keys(state)) {
    control(name).addEventListener("input", () => { state[name] = control(name).value; write(); show(); });
  }
  control("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const task of all("details.task")) task.addEventListener("toggle", () => {
    if (task.open) for (const other of all("details.task[open]", task.parentElement)) if (other !== task) other.open = false;
    for (const view of views.values()) steer(view);
  });
  const follow = () => {
    const named = location.hash.includes("=") ? null : document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (named?.matches("details")) named.open = true;
  };
  addEventListener("hashchange", () => { if (location.hash.includes("=")) { read(); show(); } else follow(); });
  read();
  show();
  follow();
})();

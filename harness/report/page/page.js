"use strict";
// The tables are in the page; this shows a part of them, sorts them, draws the figures and hands both out.
(() => {
  const suites = JSON.parse(document.getElementById("model").textContent);
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const control = (name) => document.getElementById(name);
  const usual = { limit: "mean", family: "all", task: "", policy: "", metric: "", measure: "" };
  const state = { ...usual };
  const views = new Map(); // drawn figures, by their place

  document.documentElement.classList.add("scripted");
  control("controls").hidden = suites.length === 0;

  const option = (value, text) => Object.assign(document.createElement("option"), { value, textContent: text });
  // Limits go by their place, which may be another value in each suite.
  const limits = new Map();
  for (const one of suites.flatMap((suite) => suite.limits)) limits.set(one.key, (limits.get(one.key) ?? new Set()).add(one.label));
  control("limit").append(...[...limits].sort(([one], [other]) => (one !== "mean") - (other !== "mean") || one - other).map(([key, labels]) => option(key, [...labels].join(", "))));
  const families = [...new Set(suites.flatMap((suite) => suite.families))];
  control("family").append(option("all", "all"), ...families.map((name) => option(name, name)));

  // What of training is drawn: of what algorithms log, and of held-out data.
  const drawable = { metric: new Set(suites.flatMap((suite) => suite.logged)), measure: new Set(suites.flatMap((suite) => suite.measured)) };
  for (const [name, names] of Object.entries(drawable)) {
    control(name).append(...[...names].map((one) => option(one, one)));
    control(name).parentElement.hidden = names.size === 0;
    usual[name] = [...names][0] ?? "";
  }

  // The address says what is shown, so that a link shows the same.
  const read = () => {
    const given = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
    for (const name of Object.keys(state)) state[name] = given.get(name) ?? usual[name];
    if (!limits.has(state.limit)) state.limit = "mean";
    if (!families.includes(state.family)) state.family = "all";
    for (const [name, names] of Object.entries(drawable)) if (!names.has(state[name])) state[name] = usual[name];
    for (const name of Object.keys(state)) control(name).value = state[name];
  };
  const write = () => {
    const said = Object.entries(state).filter(([name, value]) => value !== usual[name]);
    history.replaceState(null, "", said.length ? `#${new URLSearchParams(said)}` : location.pathname + location.search);
  };

  // What of the choice a suite has.
  const chosen = (suite) => ({
    family: suite.families.includes(state.family) ? state.family : "all",
    limit: suite.limits.some((one) => one.key === state.limit) ? state.limit : "mean",
  });

  const show = () => {
    for (const view of all(".view")) {
      const [family, limit] = view.dataset.view.split(":");
      const table = view.querySelector("table").dataset.name;
      const suite = suites[view.closest(".suite").dataset.suite];
      const known = chosen(suite);
      const wanted = ["leaderboard", "statistics", "selection"].includes(table) ? known.family : "all";
      view.classList.toggle("chosen", family === wanted && limit === known.limit);
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
    const { family, limit } = chosen(suites[suite]);
    const signals = { view: `${family}:${limit}`, limit, task: shownTask(suite), metric: state.metric, measure: state.measure, policy: state.policy.trim() };
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
    if (spec.data.name) spec.data = { values: suites[suite][spec.data.name] };
    const drawn = document.createElement("div");
    const bar = document.createElement("div");
    place.replaceChildren(drawn, bar);
    // A figure of which everything is filtered out has no extent: no reason for a warning.
    const options = { actions: false, renderer: "svg", logLevel: 1, theme: dark.matches ? "dark" : undefined, config: { background: "transparent" } };
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
  const visible = (row) => [...row.cells].filter((cell) => !cell.classList.contains("filtered"));
  const cells = (row) => visible(row).map(said);
  const contents = (table) => {
    const lines = [...table.tBodies[0].rows].filter((row) => !row.classList.contains("filtered"));
    return [cells(table.tHead.rows[0]), lines.map(cells), lines];
  };
  const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  // As 'leaderboard --format latex' has it: booktabs, safe bold, the best safe one blue, unsafe grey; every text is escaped.
  const signs = { "\\": "\\textbackslash{}", "^": "\\textasciicircum{}", "~": "\\textasciitilde{}", "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}", "`": "\\textasciigrave{}", "'": "\\textquotesingle{}", '"': "\\textquotedbl{}", "[": "{[}", "]": "{]}", "*": "{*}", "≤": "$\\leq$", "≥": "$\\geq$", "×": "$\\times$", "±": "$\\pm$", "✓": "", "✗": "" };
  const tex = (text) => text.replace(/[\\^~<>|`'"[\]*≤≥×±✓✗{}$&#%_]|(?<=-)-/g, (sign) => signs[sign] ?? (sign === "-" ? "{-}" : `\\${sign}`)).trim();
  const styled = (text, safe, best) => (safe ? (best ? `\\textcolor{blue}{\\textbf{${text}}}` : `\\textbf{${text}}`) : `\\textcolor{gray}{${text}}`);
  const within = (cost) => cost <= 1 + 1e-12;
  const latex = ([header, rows, lines]) => {
    const reward = header.indexOf("reward");
    const cost = header.indexOf("cost");
    const values = (line) => [reward, cost].map((column) => Number.parseFloat(visible(line)[column]?.dataset.value ?? ""));
    const ranked = header[0] === "rank" ? lines.filter((line) => visible(line)[0].dataset.value && within(values(line)[1])) : [];
    const most = Math.max(...ranked.map((line) => values(line)[0]));
    const body = rows.map((row, index) => row.map((text, column) => {
      const paid = visible(lines[index])[column].dataset.cost; // of a policy on a task: reward / cost
      if (paid) return styled(tex(text.slice(2)), within(Number.parseFloat(paid)), false);
      const [mine, price] = values(lines[index]);
      if ((column !== reward && column !== cost) || Number.isNaN(price)) return tex(text);
      return styled(tex(text), within(price), ranked.includes(lines[index]) && mine === most);
    }));
    const lined = (row) => `${row.join(" & ")} \\\\`;
    return [
      "% In the preamble: \\usepackage[T1]{fontenc} \\usepackage{textcomp,booktabs,xcolor}",
      `\\begin{tabular}{${"l".repeat(header.length)}}`, "\\toprule", lined(header.map(tex)), "\\midrule", ...body.map(lined),
      "\\bottomrule", "\\end{tabular}", "",
    ].join("\n");
  };
  // Markdown that shows a text as it is; as harness/report/tables.py has it.
  const plain = (text) => text.replace(/[\\`*$~|]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|\](?=[([:])|(?<![\p{L}\p{N}_])_|_(?![\p{L}\p{N}_])|^[#>]/gu, (sign) => `\\${sign}`);
  const formats = {
    csv: ([header, rows]) => [header, ...rows].map((row) => row.map(quoted).join(",")).join("\n") + "\n",
    md: ([header, rows]) => [header, header.map(() => "---"), ...rows].map((row) => `| ${row.map((cell) => (/^-+$/.test(cell) ? cell : plain(cell))).join(" | ")} |`).join("\n") + "\n",
    tex: latex,
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
    return text === "" || text === "-" ? null : text;
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
        const numbers = rows.every(([text]) => text === null || !Number.isNaN(Number(text)));
        const between = numbers ? (one, two) => one - two : (one, two) => one.localeCompare(two, "en", { numeric: true });
        rows.sort(([one], [two]) => (one === null) - (two === null) || (one === null ? 0 : sign * between(one, two)));
        table.tBodies[0].append(...rows.map(([, row]) => row)); // what has no value stays last
      });
    }
  }

  // The runs behind a cell of the matrix
  const behind = (cell) => {
    const section = cell.closest(".suite");
    const suite = suites[section.dataset.suite];
    const task = section.querySelector(`details.task[data-task="${CSS.escape(cell.dataset.task)}"]`).dataset.id;
    const row = cell.parentElement.dataset.policy;
    const limit = cell.closest(".view").dataset.view.split(":")[1];
    const runs = suite.runs.filter((run) => run.row === row && run.task === task && (limit === "mean" || run.place === limit));
    return runs.map((run) => `seed ${run.seed}, limit ${run.limit}: reward ${run.reward.toFixed(2)}, cost ${run.cost.toFixed(2)}`);
  };
  for (const table of all("table.matrix")) for (const kind of ["pointerover", "focusin"]) table.addEventListener(kind, (event) => {
    const cell = event.target.closest("td.safe, td.unsafe, td.undecided");
    if (!cell || cell.dataset.runs) return;
    cell.dataset.runs = "told";
    cell.title = [cell.title, ...behind(cell)].join("\n");
  });

  for (const table of all("table.matrix")) table.addEventListener("click", (event) => {
    const cell = event.target.closest("td[data-task]");
    const task = cell?.closest(".suite").querySelector(`details.task[data-task="${CSS.escape(cell.dataset.task)}"]`);
    if (!task) return;
    task.open = true;
    task.scrollIntoView();
  });

  for (const name of Object.keys(state)) {
    control(name).addEventListener("input", () => { state[name] = control(name).value; write(); show(); });
  }
  control("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const task of all("details.task")) task.addEventListener("toggle", () => {
    if (task.open) for (const other of all("details.task[open]", task.parentElement)) if (other !== task) other.open = false;
    for (const view of views.values()) steer(view);
  });
  const unescaped = (text) => { try { return decodeURIComponent(text); } catch { return text; } };
  const follow = () => {
    const named = location.hash.includes("=") ? null : document.getElementById(unescaped(location.hash.slice(1)));
    if (named?.matches("details")) named.open = true;
  };
  addEventListener("hashchange", () => { if (location.hash.includes("=")) { read(); show(); } else follow(); });
  read();
  show();
  follow();
})();

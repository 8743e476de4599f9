"use strict";
// The cohort table (sorting, filter, choice of metric and result) and the enlarged view of a figure.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const FIRST_ROWS = 200; // rows shown at once, until more are asked for
  const WITH_MEAN = data.classes > 1; // of the classes; regions, which repeat them, are left out
  const table = document.getElementById("table");
  const control = (id) => document.getElementById(id);
  const state = { column: 1, ascending: true, all: false };

  const mean = (values) => {
    const defined = values.filter((value) => value !== null);
    return defined.length ? defined.reduce((sum, value) => sum + value, 0) / defined.length : null;
  };
  // Positive is better: ratios rise to 1, quantities with a unit (distances, errors) fall to 0.
  const gain = (before, after, unit) =>
    before === null || after === null ? null : unit ? Math.abs(before) - Math.abs(after) : after - before;

  const valuesOf = (row, metric, result) => {
    const index = data.metrics.indexOf(metric);
    const [before, after] = row.scores.map((scores) => scores[index]);
    if (result === "gain") return before.map((value, i) => gain(value, after[i], metric.unit));
    return result === "postprocessed" ? after : before;
  };
  const format = (value, unit, signed) => {
    if (value === null) return "–";
    const size = Math.abs(value);
    const digits = unit === "" ? 3 : size >= 100 ? 0 : size >= 10 ? 1 : 2;
    const sign = !Number(size.toFixed(digits)) ? "" : value < 0 ? "−" : signed ? "+" : "";
    return sign + size.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  };
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b);

  const rows = () => {
    const metric = data.metrics[control("metric").value], result = control("result")?.value ?? "prediction";
    const wanted = control("filter").value.trim().toLowerCase(), change = control("change")?.value ?? "";
    return data.cases
      .filter((row) => row.name.toLowerCase().includes(wanted) && (!change || row.change === change))
      .map((row) => {
        const values = valuesOf(row, metric, result);
        return { row, cells: [row.name, ...(WITH_MEAN ? [mean(values.slice(0, data.classes))] : []), ...values] };
      })
      .sort((a, b) => {
        const [x, y] = [a.cells[state.column], b.cells[state.column]];
        if (x === null || y === null) return (x === null) - (y === null); // undefined last, either way
        return (state.ascending ? 1 : -1) * compare(x, y) || compare(a.row.name, b.row.name);
      });
  };

  const header = () => {
    const line = document.createElement("tr");
    ["Case", ...(WITH_MEAN ? ["Mean of classes"] : []), ...data.columns].forEach((title, column) => {
      const cell = document.createElement("th"), button = document.createElement("button");
      cell.scope = "col";
      cell.ariaSort = column === state.column ? (state.ascending ? "ascending" : "descending") : "none";
      button.textContent = title;
      button.addEventListener("click", () => {
        state.ascending = column === state.column ? !state.ascending : true;
        state.column = column;
        render();
        table.tHead.rows[0].cells[column].firstChild.focus();
      });
      cell.append(button);
      line.append(cell);
    });
    return line;
  };

  const body = ({ row, cells }, unit, signed) => {
    const line = document.createElement("tr"), name = document.createElement("th");
    name.scope = "row";
    name.title = row.name;
    if (row.figure) {
      const link = document.createElement("a");
      link.href = "#" + row.figure;
      link.textContent = row.name;
      name.append(link);
    } else name.textContent = row.name;
    line.append(name);
    for (const value of cells.slice(1)) {
      const cell = line.insertCell();
      cell.textContent = format(value, unit, signed);
      if (signed && value) cell.className = value > 0 ? "good" : "bad";
    }
    return line;
  };

  const render = () => {
    const found = rows(), unit = data.metrics[control("metric").value].unit;
    const signed = control("result")?.value === "gain";
    const shown = state.all ? found : found.slice(0, FIRST_ROWS);
    table.tHead.replaceChildren(header());
    table.tBodies[0].replaceChildren(...shown.map((row) => body(row, unit, signed)));
    control("count").textContent = `${shown.length} of ${data.cases.length} cases shown`;
    control("more").hidden = shown.length === found.length;
  };

  // A gain in a size is neither good nor bad, so it is not offered.
  const offerGain = () => {
    const option = control("result")?.querySelector("[value=gain]");
    if (!option) return;
    option.disabled = !data.metrics[control("metric").value].judged;
    if (option.disabled && control("result").value === "gain") control("result").value = "postprocessed";
  };

  for (const id of ["metric", "result", "change"]) {
    control(id)?.addEventListener("change", () => { offerGain(); render(); });
  }
  control("filter").addEventListener("input", render);
  control("more").addEventListener("click", () => { state.all = true; render(); });
  offerGain();
  render();

  const viewer = control("viewer");
  for (const panel of document.querySelectorAll(".panel")) {
    panel.addEventListener("click", () => {
      const [image, source] = [viewer.querySelector("img"), panel.querySelector("img")];
      image.src = source.src;
      image.alt = source.alt;
      viewer.showModal();
    });
  }
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
})();

export default function ({ data, parentElement }) {
  const made = (kind, texts, look) => {
    const row = document.createElement("tr");
    row.className = look;
    row.replaceChildren(...texts.map((text) => {
      const cell = document.createElement(kind);
      cell.textContent = text;
      return cell;
    }));
    return row;
  };
  const table = document.createElement("table");
  table.replaceChildren(made("th", data.head, ""),
    ...data.rows.map(([look, texts]) => made("td", texts, look)));
  parentElement.querySelector(".table").replaceChildren(table);
}

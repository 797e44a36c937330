export default function ({ data, parentElement }) {
  const box = parentElement.querySelector(".text");
  box.className = "text " + data.look;
  box.dir = "auto";
  box.replaceChildren(...data.spans.map(([text, kind]) => {
    const span = document.createElement("span");
    span.textContent = text;
    span.className = kind;
    return span;
  }));
}

export default function ({ data, parentElement }) {
  parentElement.querySelector(".chart").innerHTML = data;
}

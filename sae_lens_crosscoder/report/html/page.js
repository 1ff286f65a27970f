// Figures stand in the page as JSON, each right after the element that it is drawn in.
const drawn = [];
for (const block of document.querySelectorAll('script[type="application/json"]')) {
  const element = block.previousElementSibling;
  const figure = JSON.parse(block.textContent);
  Plotly.newPlot(element, figure.data, figure.layout, {
    responsive: true,
    displaylogo: false,
    doubleClick: "reset",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  });
  drawn.push(element);
}
// Paper is narrower than the window, and plotly does not hear of it.
addEventListener("beforeprint", () => drawn.forEach((element) => Plotly.relayout(element, { width: 680 })));
addEventListener("afterprint", () => drawn.forEach((element) => Plotly.relayout(element, { width: null, autosize: true })));

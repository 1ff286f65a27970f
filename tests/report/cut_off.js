(() => {
  // What is cut off on this page, in words: beyond the window, or within an element that hides it, without a scroller
  // around it; and scrollers that do not show that they scroll.
  const width = document.documentElement.clientWidth;
  const found = [];
  const name = (e) => `${e.tagName.toLowerCase()}.${e.getAttribute("class") ?? ""} ${JSON.stringify(e.textContent.slice(0, 30))}`;
  const scrolls = (e) => ["auto", "scroll"].includes(getComputedStyle(e).overflowX) && e !== document.body;
  const hides = (e) => ["hidden", "clip"].includes(getComputedStyle(e).overflowX);
  if (document.documentElement.scrollWidth > width) found.push(`the page is ${document.documentElement.scrollWidth} wide`);
  for (const e of document.body.querySelectorAll("*")) {
    const box = e.getBoundingClientRect();
    if (box.width === 0 || box.height === 0 || e.closest("svg, script, style, option")) continue;
    if (scrolls(e) && e.scrollWidth > e.clientWidth + 1) {
      const { backgroundImage, backgroundAttachment } = getComputedStyle(e);
      const hasShade = backgroundImage.includes("gradient") && backgroundAttachment.includes("local");
      const hasBar = Number.parseFloat(getComputedStyle(e, "::-webkit-scrollbar").height) >= 6;
      if (!hasShade && !hasBar) found.push(`scrolls unseen: ${name(e)}`);
    }
    if (hides(e) && !e.matches(".tokens, .token") && e.scrollWidth > e.clientWidth + 1) found.push(`hidden: ${name(e)}`);
    let outer = e;
    while (outer !== null && !scrolls(outer)) outer = outer.parentElement;
    if (outer === null && (box.right > width + 1 || box.left < -1)) found.push(`beyond the window: ${name(e)}`);
  }
  return [...new Set(found)];
})()

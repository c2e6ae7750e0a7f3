// An answer's text as elements. What a model writes is never taken for markup: every character of
// it becomes text. Of Markdown it knows what models use most: fences, lists, headings, `code` and
// **strong**.

const INLINE = /(`[^`\n]+`|\*\*[^*\n]+\*\*)/;

function element(name, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return made;
}

function inline(into, text) {
  for (const part of text.split(INLINE)) {
    if (part.length > 2 && part.startsWith("`")) into.append(element("code", part.slice(1, -1)));
    else if (part.length > 4 && part.startsWith("**")) {
      into.append(element("strong", part.slice(2, -2)));
    } else if (part) into.append(part);
  }
  return into;
}

function paragraph(into, lines) {
  if (!lines.length) return;
  into.append(inline(element("p"), lines.join("\n")));
  lines.length = 0;
}

/** Replaces what `into` holds by `text`. */
export function write(into, text) {
  into.replaceChildren();
  const lines = [];
  let list = null;
  let code = null;
  for (const line of text.split("\n")) {
    if (code) {
      if (line.trimStart().startsWith("```")) code = null;
      else code.textContent += `${line}\n`;
      continue;
    }
    const item = /^\s*(?:([-*])|\d+[.)])\s+(.*)$/.exec(line);
    const heading = /^#{1,6}\s+(.*)$/.exec(line);
    if (item || heading || !line.trim() || line.trimStart().startsWith("```")) {
      paragraph(into, lines);
    }
    if (!item && line.trim()) list = null;
    if (line.trimStart().startsWith("```")) {
      code = element("code", "");
      const block = element("pre");
      block.tabIndex = 0;
      block.append(code);
      into.append(block);
    } else if (item) {
      const kind = item[1] ? "UL" : "OL";
      if (list?.tagName !== kind) into.append((list = element(kind)));
      list.append(inline(element("li"), item[2]));
    } else if (heading) {
      into.append(inline(element("h4"), heading[1]));
    } else if (line.trim()) {
      lines.push(line);
    }
  }
  paragraph(into, lines);
}

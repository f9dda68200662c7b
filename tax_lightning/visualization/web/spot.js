// What is told of a spot: the result, who would say so, and the examples for and against.

const MOST_VOICES = 5;

function made(tag, properties = {}, ...content) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...content);
  return node;
}

function css([r, g, b]) {
  return `rgb(${r} ${g} ${b})`;
}

function chip(colour) {
  const node = made("span", { className: "chip", ariaHidden: "true" });
  node.style.background = css(colour);
  return node;
}

function perCent(share) {
  const rounded = Math.floor(100 * share + 0.5);
  return share > 0 && rounded === 0 ? "< 1%" : `${rounded}%`;
}

function nameOf(annotator) {
  return report.annotators[annotator].name;
}

function className(label) {
  return report.classes[label].name;
}

function showReading(reading, [y, x]) {
  const parts = [
    made("p", { className: "place" }, `Row ${y}, column ${x}`),
    verdict(reading),
    because("For: ", reading.reason, ` It makes up ${perCent(reading.share)} of the decision.`),
  ];
  if (reading.against) parts.push(because("Against: ", reading.against, ""));
  parts.push(voicesOf(reading));
  document.getElementById("spot").replaceChildren(...parts);
}

function verdict(reading) {
  const { colour, name } = report.classes[reading.result];
  const node = made("p", { className: "verdict" }, chip(colour), made("b", {}, name), ". ");
  const people = report.annotators.length;
  node.append(`${reading.votes.toFixed(1)} of ${people} would say so.`);
  if (reading.undisputed) node.append(" Undisputed.");
  else if (report.trust.kind === "image") node.append(" ", trusted(reading));
  return node;
}

// "Decides" is said of an annotator only where it is true.
function trusted({ leader, decides, voices }) {
  const { weight } = voices.find(({ annotator }) => annotator === leader);
  const said = `${nameOf(leader)} `;
  if (decides) return `${said}decides, with a weight of ${perCent(weight)}.`;
  if (weight >= 0.5) return `${said}is outvoted, with a weight of ${perCent(weight)}.`;
  return `Shared: ${said}has the largest weight, ${perCent(weight)}.`;
}

// A training pixel with this label, on the card of its prototype.
function because(lead, { annotator, kernel, label }, more) {
  const { shades, prototypes } = report.annotators[annotator];
  const example = exampleOf(annotator, kernel, label);
  const name = made("b", {}, chip(shades[kernel]), `prototype ${kernel}`);
  const origin = example
    ? `: labelled ${example.label} in ${example.sample_id}, row ${example.y}, column ${example.x}.`
    : `: no training pixel labelled ${className(label)} is like it.`;
  const caption = made("figcaption", {}, made("b", {}, lead), `${nameOf(annotator)} would say `);
  caption.append(`${className(label)}, by `, name, origin, more);
  const node = made("figure", {}, caption);
  const card = document.getElementById(prototypes[kernel].card);
  if (card) {
    const copy = card.cloneNode();
    copy.removeAttribute("id");
    node.append(copy);
  }
  return node;
}

// Everybody by how probably they say what is decided; of many the first and the last.
function voicesOf({ voices }) {
  const list = made("ol");
  const add = (name, support, label, colour) => {
    const bar = made("span", { className: "bar" });
    bar.style.width = colour ? `${100 * support}%` : 0;
    bar.style.background = colour ? css(colour) : "";
    list.append(
      made("li", {},
        made("span", { className: "name" }, name),
        made("span", { className: "track", ariaHidden: "true" }, bar),
        made("span", { className: "value" }, colour ? perCent(support) : ""),
        made("span", { className: "says" }, label)),
    );
  };
  const many = voices.length > 2 * MOST_VOICES;
  voices.forEach(({ annotator, support, says }, place) => {
    if (many && place === MOST_VOICES) add(`${voices.length - 2 * MOST_VOICES} others`, 0, "");
    if (many && place >= MOST_VOICES && place < voices.length - MOST_VOICES) return;
    add(nameOf(annotator), support, className(says), report.annotators[annotator].colour);
  });
  const title = made("h4", {}, "How probably each says the same, and what they would say");
  return made("div", { className: "voices" }, title, list);
}

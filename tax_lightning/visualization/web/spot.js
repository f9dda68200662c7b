// What is told of a spot: the result, who would say so, the examples for it and against it.

const MOST_VOICES = 5;

function made(tag, properties = {}, ...content) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...content);
  return node;
}

const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;
const nameOf = (annotator) => report.annotators[annotator].name;
const className = (label) => report.classes[label].name;

function chip(colour) {
  const node = made("span", { className: "chip", ariaHidden: "true" });
  node.style.background = css(colour);
  return node;
}

function perCent(share) {
  const rounded = Math.floor(100 * share + 0.5);
  return share > 0 && rounded === 0 ? "< 1%" : `${rounded}%`;
}

const dissent = ({ annotator, label }) =>
  `Against: ${nameOf(annotator)} would say ${className(label)}, as here. `;

// Show a reading.
function showReading(reading, [y, x]) {
  const label = className(reading.result);
  const votes = `${reading.votes.toFixed(1)} of ${report.annotators.length} would say so.`;
  const calm = made("p", { className: "note" }, `Not disputed: ${report.undisputed_words}.`);
  const nobody = made("p", {}, made("b", {}, "Against: "),
    "for every annotator this class is the most likely.");
  document.getElementById("spot").replaceChildren(
    made("p", { className: "place" }, `Row ${y}, column ${x}`),
    made("p", { className: "verdict" },
      chip(report.classes[reading.result].colour), made("b", {}, label), `: ${votes}`),
    ...(reading.undisputed ? [calm] : []),
    made("h4", {}, "Why"),
    argument(`For ${label}: `, reading.reason),
    reading.against ? argument(dissent(reading.against), reading.against) : nobody,
    made("h4", {}, `Who would say ${label}`),
    voicesOf(reading.agreeing),
    made("h4", {}, "Who would say something else"),
    voicesOf(reading.dissenting),
    ...(reading.trust ? [made("h4", {}, "Whom the result follows"), trustOf(reading.trust)] : []),
  );
}

// A prototype that speaks for a class: the training pixel of that class most like it.
function argument(lead, { annotator, kernel, label, share }) {
  const { name, prototypes } = report.annotators[annotator];
  const prototype = prototypes[kernel] ;
  const example = prototype.examples.find((one) => one.label === className(label));
  const node = made("figure", { className: "because" });
  const crop = document.getElementById(`crop-${annotator}-${kernel}-${label}`);
  if (crop) node.append(made("img", { className: "crop", src: crop.textContent, alt: "" }));
  const words = [made("b", {}, lead), `prototype ${kernel} of ${name}`];
  if (example) {
    const { sample_id, y, x } = example;
    words.push(`, like training image ${sample_id}, row ${y}, column ${x}`);
    words.push(`, which ${name} labelled ${className(label)}`);
  } else if (prototype.taken_from) {
    words.push(`; there is no pixel like it that ${name} labelled ${className(label)}`);
  } else {
    words.push(", which is no training pixel yet");
  }
  words.push(share === undefined ? "." : `. It makes up ${perCent(share)} of the decision.`);
  node.append(made("figcaption", {}, ...words));
  return node;
}

function voicesOf(voices) {
  const list = made("ol", { className: "voices" });
  for (const { annotator, label, share } of voices.slice(0, MOST_VOICES)) {
    const bar = made("span", { className: "bar" });
    bar.style.width = `${100 * share}%`;
    bar.style.background = css(report.annotators[annotator].colour);
    list.append(
      made("li", {},
        made("span", {}, nameOf(annotator)),
        made("span", { className: "track", ariaHidden: "true" }, bar),
        made("span", { className: "value" }, perCent(share)),
        made("span", { className: "place" }, className(label))),
    );
  }
  const rest = voices.length - MOST_VOICES;
  if (rest > 0) list.append(made("li", {}, `and ${rest} more`));
  if (!voices.length) list.append(made("li", {}, "nobody"));
  return list;
}

// Who has less than half of the weight, or would not say the result, is not said to decide.
function trustOf({ leader, weight, standing }) {
  const { colour, name } = report.annotators[leader];
  const words = {
    decides: `${name} decides, with a weight of ${perCent(weight)}.`,
    outvoted: `${name} weighs most, ${perCent(weight)}, but is outvoted.`,
    shared: `Shared: ${name} weighs most, ${perCent(weight)}, which is less than half.`,
  };
  return made("p", { className: "trust" }, chip(colour), words[standing]);
}

// What is told of a spot: who decides there, why, and who else has a say.

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
  document.getElementById("spot").replaceChildren(
    made("p", { className: "place" }, `Row ${y}, column ${x}`),
    verdict(reading),
    because(reading),
    otherVoices(reading.voices),
  );
}

function verdict(reading) {
  const node = made("p", { className: "verdict" });
  const label = made("b", {}, className(reading.result));
  if (reading.unanimous) {
    node.append("Nobody in particular: all would say ", label, ".");
    return node;
  }
  const { colour, name } = report.annotators[reading.leader];
  node.append(chip(colour), made("b", {}, name), ` ${says(reading.voices)} The result: `);
  node.append(chip(report.classes[reading.result].colour), label, ".");
  return node;
}

// Who has less than half of the weight does not decide alone, and is not said to.
function says(voices) {
  const [{ weight }] = voices;
  if (weight >= 0.5) return `decides, with a weight of ${perCent(weight)}.`;
  return `has the largest say, ${perCent(weight)}; an even share is ${perCent(1 / voices.length)}.`;
}

// The prototype behind the decision, on its card.
function because({ leader, kernel, share, unanimous }) {
  const { shades, prototypes } = report.annotators[leader];
  const lead = unanimous ? "The nearest example, which means little here: " : "Because it resembles ";
  const name = made("b", {}, chip(shades[kernel]), `prototype ${kernel}`);
  const said = `, which makes up ${perCent(share)} of the decision.`;
  const caption = made("figcaption", {}, lead, name, ` of ${nameOf(leader)}${said}`);
  const node = made("figure", {}, caption);
  const card = document.getElementById(prototypes[kernel].card);
  if (card) {
    const copy = card.cloneNode();
    copy.removeAttribute("id");
    node.append(copy);
  }
  return node;
}

function otherVoices(voices) {
  const list = made("ol");
  const add = (name, weight, label, colour) => {
    const bar = made("span", { className: "bar" });
    bar.style.width = colour ? `${100 * weight}%` : 0;
    bar.style.background = colour ? css(colour) : "";
    list.append(
      made("li", {},
        made("span", { className: "name" }, name),
        made("span", { className: "track", ariaHidden: "true" }, bar),
        made("span", { className: "value" }, perCent(weight)),
        made("span", { className: "says" }, label)),
    );
  };
  for (const { annotator, weight, says } of voices.slice(0, MOST_VOICES)) {
    add(nameOf(annotator), weight, className(says), report.annotators[annotator].colour);
  }
  const rest = voices.slice(MOST_VOICES);
  if (rest.length) add(`${rest.length} others`, rest.reduce((all, v) => all + v.weight, 0), "");
  const title = made("h4", {}, "Whose say, and what they would say");
  return made("div", { className: "voices" }, title, list);
}

// What is told of a spot: who decides there, why, and who else has a say.

function made(tag, properties = {}, text = "") {
  const node = Object.assign(document.createElement(tag), properties);
  if (text) node.textContent = text;
  return node;
}

function css([r, g, b]) {
  return `rgb(${r} ${g} ${b})`;
}

function chip(colour) {
  const node = made("span", { className: "chip" });
  node.style.background = css(colour);
  node.setAttribute("aria-hidden", "true");
  return node;
}

function entry(colour, text) {
  const node = made("span", { className: "entry" });
  node.append(chip(colour), text);
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
  const spot = element("spot");
  const place = `row ${y}, column ${x}`;
  const [first] = reading.voices;
  const example = report.annotators[reading.leader].prototypes[reading.kernel];
  spot.replaceChildren(
    made("p", { className: "place" }, place[0].toUpperCase() + place.slice(1)),
    verdict(reading, first),
    because(reading, example),
    otherVoices(reading.voices),
  );
  // As data, for whoever reads the page by program.
  Object.assign(spot.dataset, {
    y,
    x,
    unanimous: reading.unanimous,
    result: className(reading.result),
    leader: nameOf(reading.leader),
    weight: first.weight.toFixed(4),
    kernel: reading.kernel,
    share: reading.share === null ? "" : reading.share,
    voices: JSON.stringify(
      reading.voices.map((v) => [nameOf(v.annotator), v.weight.toFixed(4), className(v.says)]),
    ),
  });
  spot.dataset.said = spoken(reading, place, example);
}

function verdict(reading, first) {
  const node = made("p", { className: "verdict" });
  if (reading.unanimous) {
    node.append("Nobody in particular: all would say ");
    node.append(made("b", {}, className(reading.result)), ".");
    return node;
  }
  node.append(chip(report.annotators[reading.leader].colour));
  node.append(made("b", {}, nameOf(reading.leader)), ` ${says(first, reading.voices.length)} `);
  node.append("The result: ", chip(report.classes[reading.result].colour));
  node.append(made("b", {}, className(reading.result)), ".");
  return node;
}

// Who has less than half of the weight does not decide alone, and is not said to.
function says({ weight }, count) {
  if (weight >= 0.5) return `decides, with a weight of ${perCent(weight)}.`;
  return `has the largest say, ${perCent(weight)}; an even share is ${perCent(1 / count)}.`;
}

// The prototype behind the decision: its crop, and where it comes from.
function because(reading, example) {
  const node = made("figure", { className: "because" });
  const card = example.card === null ? null : element(example.card);
  const crop = card && card.querySelector(".crop");
  const colour = report.annotators[reading.leader].shades[reading.kernel];
  if (crop) {
    const copy = crop.cloneNode(true);
    copy.style.borderColor = css(colour);
    node.append(copy);
  }
  const caption = made("figcaption");
  const lead = reading.unanimous ? "The nearest example, which means little here: " : "Because it resembles ";
  caption.append(lead, made("b", {}, `prototype ${reading.kernel}`), ` of ${nameOf(reading.leader)}`);
  caption.append(example.origin ? `: ${example.origin}.` : ".");
  if (reading.share !== null) {
    caption.append(` It makes up ${perCent(reading.share / report.levels)} of the decision.`);
  }
  if (card) {
    const link = made("a", { href: `#${example.card}` }, "See the whole image");
    caption.append(made("br"), link);
  }
  node.append(caption);
  return node;
}

function otherVoices(voices) {
  const node = made("div", { className: "voices" });
  node.append(made("h4", {}, "Whose say, and what they would say"));
  const list = made("ol");
  for (const { annotator, weight, says } of voices.slice(0, report.most_voices)) {
    const item = made("li");
    const bar = made("span", { className: "bar" });
    bar.style.width = `${100 * weight}%`;
    bar.style.background = css(report.annotators[annotator].colour);
    const track = made("span", { className: "track" });
    track.append(bar);
    track.setAttribute("aria-hidden", "true");
    item.append(
      made("span", { className: "name" }, nameOf(annotator)),
      track,
      made("span", { className: "value" }, perCent(weight)),
      made("span", { className: "says" }, className(says)),
    );
    list.append(item);
  }
  const rest = voices.slice(report.most_voices);
  if (rest.length) {
    const sum = rest.reduce((all, voice) => all + voice.weight, 0);
    const item = made("li");
    item.append(
      made("span", { className: "name" }, `${rest.length} others`),
      made("span", { className: "track" }),
      made("span", { className: "value" }, perCent(sum)),
      made("span", { className: "says" }),
    );
    list.append(item);
  }
  node.append(list);
  return node;
}

function spoken(reading, place, example) {
  if (reading.unanimous) return `At ${place}, all would say ${className(reading.result)}.`;
  const [first, ...others] = reading.voices;
  const origin = example.origin ? `, ${example.origin}` : "";
  const next = others.slice(0, 2).map((v) => `${nameOf(v.annotator)} ${perCent(v.weight)}`);
  return (
    `At ${place}, ${nameOf(reading.leader)} ${says(first, reading.voices.length)} ` +
    `Result: ${className(reading.result)}. Because of prototype ${reading.kernel}${origin}. ` +
    (next.length ? `Next: ${next.join(", ")}.` : "")
  );
}

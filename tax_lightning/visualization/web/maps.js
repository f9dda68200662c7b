"use strict";

// The maps of one image: read from the page, and what follows from them.
//
// A share is a whole number out of report.levels.

const report = JSON.parse(document.getElementById("report").textContent);
const STANDINGS = ["shared", "decides", "outvoted"]; // by the numbers in the map "standing"

// The maps of the image of this number, by name. Each is a list of planes, a byte a pixel.
async function readMaps(number) {
  const packed = atob(document.getElementById(`maps-${number}`).textContent);
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const values = new Uint8Array(await new Response(stream).arrayBuffer());
  const { shown, planes } = report.images[number];
  const [height, width] = shown;
  const maps = { number, height, width };
  let start = 0;
  for (const { name, count } of planes) {
    const next = () => values.subarray(start, (start += height * width));
    maps[name] = Array.from({ length: count }, next);
  }
  return maps;
}

// The place of the largest value; of equals the first.
const largest = (values) => values.indexOf(Math.max(...values));

// Shares of the classes at a pixel as an annotator would say; the background, which has no plane,
// gets the rest.
function sharesAt(maps, annotator, pixel) {
  const count = report.classes.length - 1;
  const planes = maps.annotator_foreground.slice(annotator * count, (annotator + 1) * count);
  const shares = planes.map((plane) => plane[pixel]);
  const rest = shares.reduce((left, share) => left - share, report.levels);
  return [Math.max(0, rest), ...shares];
}

// The class that an annotator drew, where masks are at hand, else would draw, at every pixel.
function drawnBy(maps, annotator) {
  if (maps.masks) return maps.masks[annotator].map((label) => (label === 255 ? 0 : label));
  return maps.result[0].map((_, i) => largest(sharesAt(maps, annotator, i)));
}

// Everything that is told of a pixel. Voices for the result come with the probability of the
// result, those against it with the probability of what they would say.
function readingOf(maps, pixel) {
  const result = maps.result[0][pixel];
  const voices = report.annotators.map((_, annotator) => {
    const shares = sharesAt(maps, annotator, pixel);
    const label = largest(shares);
    return { annotator, label, share: shares[label] / report.levels };
  });
  voices.sort((a, b) => b.share - a.share);
  const dissenter = maps.dissenter[0][pixel];
  const { label } = voices.find(({ annotator }) => annotator === dissenter);
  return {
    result,
    votes: (maps.votes[0][pixel] / report.levels) * report.annotators.length,
    undisputed: maps.undisputed[0][pixel] === 1,
    agreeing: voices.filter((voice) => voice.label === result),
    dissenting: voices.filter((voice) => voice.label !== result),
    reason: {
      annotator: maps.reason[0][pixel],
      kernel: maps.reason_kernel[0][pixel],
      label: result,
      share: maps.reason_share[0][pixel] / report.levels,
    },
    against:
      label === result
        ? null
        : { annotator: dissenter, kernel: maps.dissent_kernel[0][pixel], label },
    trust: maps.who && {
      leader: maps.leader[0][pixel],
      weight: maps.who[maps.leader[0][pixel]][pixel] / report.levels,
      standing: STANDINGS[maps.standing[0][pixel]],
    },
  };
}

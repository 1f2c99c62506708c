/** Numbers as people read them. */

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const MINUS = "\u2212";

const raised = (/** @type {number} */ power) =>
  [...String(power)].map((digit) => SUPERSCRIPTS[Number(digit)] ?? "⁻").join("");

/** 3200000000 -> 3.2 × 10⁹ @param {number} msun */
export function mass(msun) {
  if (!(msun > 0)) return "0";
  let power = Math.floor(Math.log10(msun));
  let digits = (msun / 10 ** power).toFixed(1);
  if (digits === "10.0") [digits, power] = ["1.0", power + 1];
  return `${digits} × 10${raised(power)}`;
}

/** 3200000000 -> 3.2e9, as it is typed @param {number} msun */
export const typed = (msun) =>
  msun
    .toExponential(2)
    .replace("e+", "e")
    .replace(/\.?0+e/, "e");

/** 0.9987 -> 99.9 %; never 100 % or 0 % of what is only nearly so, and a dash for no number. @param {number} share */
export function percent(share) {
  if (!Number.isFinite(share)) return "–";
  if (share > 0.999 && share < 1) return "> 99.9 %";
  if (share > 0 && share < 0.001) return "< 0.1 %";
  return `${(100 * share).toFixed(1)} %`;
}

/** 1500800 -> 1.50 million @param {number} n */
export function many(n) {
  if (n >= 1e6) return `${(n / 1e6).toFixed(2)} million`;
  return Math.round(n).toLocaleString("en-GB");
}

/** 1.3 -> 1.3 ms; 2300 -> 2.3 s; a dash for no number @param {number | null} ms */
export function milliseconds(ms) {
  if (ms === null) return "–";
  if (ms >= 999.5) return `${(ms / 1000).toFixed(1)} s`;
  return `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
}

/** 75 -> 1 min 15 s; 8300 -> 2 h 18 min @param {number} s */
export function seconds(s) {
  const whole = Math.max(1, Math.round(s));
  if (whole >= 3600) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  if (whole < 60) return `${whole} s`;
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** With a true minus sign. @param {number} value @param {number} [digits] */
export const signed = (value, digits) => value.toFixed(digits).replace("-", MINUS);

/** As few digits as tell it apart: 12.0400001 -> 12.04 @param {number} value */
export const plain = (value, digits = 4) => String(Number(value.toFixed(digits)));

/** "a", "a and b", "a, b and c" @param {string[]} words */
export function listed(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

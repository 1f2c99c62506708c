/** Numbers as people read them. */

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const MINUS = "\u2212";

const raised = (power) => [...String(power)].map((digit) => SUPERSCRIPTS[digit] ?? "⁻").join("");

/** 3200000000 -> 3.2 × 10⁹ */
export function mass(msun) {
  if (!(msun > 0)) return "0";
  let power = Math.floor(Math.log10(msun));
  let digits = (msun / 10 ** power).toFixed(1);
  if (digits === "10.0") [digits, power] = ["1.0", power + 1];
  return `${digits} × 10${raised(power)}`;
}

/** 3200000000 -> 3.2e9, as it is typed */
export const typed = (msun) =>
  msun
    .toExponential(2)
    .replace("e+", "e")
    .replace(/\.?0+e/, "e");

/** 0.9987 -> 99.9 %; never 100 % or 0 % of what is only nearly so. */
export function percent(share) {
  if (share > 0.999 && share < 1) return "> 99.9 %";
  if (share > 0 && share < 0.001) return "< 0.1 %";
  return `${(100 * share).toFixed(1)} %`;
}

/** 1500800 -> 1.50 million */
export function many(n) {
  if (n >= 1e6) return `${(n / 1e6).toFixed(2)} million`;
  return Math.round(n).toLocaleString("en-GB");
}

/** 1.3 -> 1.3 ms; 2300 -> 2.3 s */
export function milliseconds(ms) {
  if (ms >= 1000) return `${(ms / 1000).toFixed(1)} s`;
  return `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
}

/** 75 -> 1 min 15 s; 8300 -> 2 h 18 min */
export function seconds(s) {
  if (s >= 3600) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  if (s < 60) return `${Math.max(1, Math.round(s))} s`;
  return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
}

/** With a true minus sign. */
export const signed = (value, digits) => value.toFixed(digits).replace("-", MINUS);

/** As few digits as tell it apart: 12.0400001 -> 12.04 */
export const plain = (value, digits = 4) => String(Number(value.toFixed(digits)));

/** "a", "a and b", "a, b and c" */
export function listed(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

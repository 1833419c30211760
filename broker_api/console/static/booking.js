// The form that books a class: times in the reader's own zone, and what the booking check says meanwhile.
// The form always sends UTC, as it does without this script. So the server need not know the zone.
import { showTimes } from "./times.js";

const WAIT_MS = 400;
const form = document.querySelector("form[data-moments]");
const moments = [...form.querySelectorAll("input[data-moment]")];
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "short" });

const two = (number) => String(number).padStart(2, "0");
const seconds = (text) => (text.endsWith(":00") ? text.slice(0, -3) : text);
const toUtc = (local) => {
  const at = new Date(local);
  return Number.isNaN(at.getTime()) ? "" : seconds(at.toISOString().slice(0, 19));
};
const toLocal = (utc) => {
  const at = new Date(`${utc}Z`);
  if (Number.isNaN(at.getTime())) return "";
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return seconds(`${day}T${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`);
};
// What was not changed is sent as it came: in the hour that clocks show twice, the local time alone is not enough.
const utcOf = (input) => (input.value === toLocal(input.defaultValue) ? seconds(input.defaultValue) : toUtc(input.value));
const say = (input) => {
  const at = new Date(input.value);
  const utc = Number.isNaN(at.getTime()) ? "" : `${exact.format(at)}, which is ${utcOf(input).replace("T", " ")} UTC.`;
  input.closest(".field").querySelector("[data-moment-said]").textContent = utc;
};

// First, so that local times are never sent as UTC, whatever fails afterwards.
form.addEventListener("formdata", ({ formData }) => {
  for (const input of moments) formData.set(input.name, utcOf(input));
});
for (const input of moments) {
  // The attribute has what the server wrote. The value may be one that the browser remembers from before: a local time.
  input.value = toLocal(input.defaultValue);
  input.closest(".field").querySelector("[data-zone-name]").textContent = `in ${zone}`;
  input.addEventListener("input", () => say(input));
  say(input);
}

const found = form.querySelector("[data-found]");
let waiting, current;

async function check() {
  current?.abort();
  current = new AbortController();
  try {
    const body = new URLSearchParams(new FormData(form));
    const answer = await fetch(form.dataset.check, { method: "POST", body, signal: current.signal });
    if (!answer.ok || answer.redirected) throw new Error(answer.statusText);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    showTimes(fresh);
    found.replaceChildren(...fresh.body.childNodes);
  } catch (error) {
    if (error.name === "AbortError") return;
    found.textContent = "The check does not answer now. You can book all the same: booking checks again.";
  }
}

if (found !== null) {
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(check, WAIT_MS);
  });
  check();
}

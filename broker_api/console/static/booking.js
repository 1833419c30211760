// The form that books a class: what the booking check says meanwhile.
import "./moments.js";
import { showTimes } from "./times.js";

const WAIT_MS = 400;
const form = document.querySelector("form[data-moments]");
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

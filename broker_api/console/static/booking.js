// The form that books a class: what the booking check says meanwhile.
import "./moments.js";
import { showTimes } from "./times.js";

const WAIT_MS = 400;
// The API takes the token no more; or the session has ended, and with it the token of the form.
const SIGNED_OUT = [401, 400];
const form = document.querySelector("form[data-moments]");
const found = form.querySelector("[data-found]");
let waiting, current;

async function check() {
  current?.abort();
  current = new AbortController();
  try {
    const body = new URLSearchParams(new FormData(form));
    const answer = await fetch(form.dataset.check, { method: "POST", headers: { "X-Renew": "1" }, body, signal: current.signal });
    if (SIGNED_OUT.includes(answer.status)) {
      document.querySelector("[data-signed-out]").hidden = false;
      found.textContent = "Nothing can be checked, because you are signed out.";
      return;
    }
    if (!answer.ok) throw new Error(answer.statusText);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    showTimes(fresh);
    found.replaceChildren(...fresh.body.childNodes);
  } catch (error) {
    if (error.name === "AbortError") return;
    found.textContent = "The check does not answer now. You can go on all the same: the broker checks again.";
  }
}

if (found !== null) {
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(check, WAIT_MS);
  });
  check();
}

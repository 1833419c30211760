// A double click sends a form once, so that its only answer is shown.
const form = document.querySelector(".webhook-form");
form.addEventListener("submit", () => { form.querySelector(".btn-primary").disabled = true; });
addEventListener("pageshow", () => { form.querySelector(".btn-primary").disabled = false; });
// A kind that is ticked means that only some kinds are wanted.
for (const box of document.querySelectorAll(".kinds input")) {
  box.addEventListener("change", () => {
    document.querySelector("#scope-some").checked = true;
  });
}

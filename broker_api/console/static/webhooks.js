// A kind that is ticked means that only some kinds are wanted.
for (const box of document.querySelectorAll(".kinds input")) {
  box.addEventListener("change", () => {
    document.querySelector("#scope-some").checked = true;
  });
}

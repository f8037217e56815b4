// How a picture gets in: dropped, pasted, or chosen.

/**
 * @param {object} page  `file`, the hidden input; `openers`, the buttons that ask for a file.
 * @param {(file: File) => void} take
 * @param {(words: string) => void} complain
 */
export function followIntake({ file, openers }, take, complain) {
  for (const button of openers) button.addEventListener("click", () => file.click());
  file.addEventListener("change", () => {
    if (file.files.length > 0) take(file.files[0]);
    // The same file may be chosen again.
    file.value = "";
  });

  let depth = 0;
  const veil = (isOver) => {
    depth = isOver ? depth : 0;
    document.body.classList.toggle("dropping", isOver);
  };
  addEventListener("dragenter", () => {
    depth += 1;
    veil(true);
  });
  addEventListener("dragleave", () => {
    depth -= 1;
    if (depth <= 0) veil(false);
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    veil(false);
    takeFrom(event.dataTransfer, "That was no picture file. Save the picture first, and drop the file.");
  });
  addEventListener("paste", (event) => {
    if (event.target.matches?.("input")) return;
    takeFrom(event.clipboardData, "The clipboard holds no picture. Copy the picture itself, not its address.");
  });

  function takeFrom(transfer, otherwise) {
    const files = [...transfer.files];
    const picture = files.find(({ type }) => type.startsWith("image/")) ?? files[0];
    if (picture) take(picture);
    else complain(otherwise);
  }
}

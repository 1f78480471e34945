// A classic script, not a module: browsers load modules from servers only.

if (location.protocol === "file:") {
  document.getElementById("state").textContent = "";
  const problem = document.getElementById("problem");
  problem.textContent = "Browsers run this page only from a web server. To try it on this machine, run python3 -m http.server in its folder, and open localhost:8000. README.md says more.";
  problem.hidden = false;
}

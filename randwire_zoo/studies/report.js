'use strict';

// Tables sort by the column whose head is clicked: names by their letters, other cells by the first number in them.
function sortable(table) {
  const body = table.tBodies[0], original = [...body.rows];
  const number = cell => {
    const found = cell.textContent.match(/-?\d+(\.\d+)?/);
    return found ? parseFloat(found[0]) : -Infinity;
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.tabIndex = 0;
    const sort = () => {
      const order = {none: 'descending', descending: 'ascending', ascending: 'none'}[head.ariaSort || 'none'];
      const words = head.classList.contains('words') || original.every(row => !/\d/.test(row.cells[column].textContent));
      const rows = [...original];
      if (order !== 'none') {
        rows.sort((one, other) => {
          const [a, b] = [one.cells[column], other.cells[column]];
          const compared = words ? b.textContent.localeCompare(a.textContent) : number(b) - number(a);
          return (Number.isNaN(compared) ? 0 : compared) * (order === 'descending' ? 1 : -1);
        });
      }
      [...table.tHead.rows[0].cells].forEach(other => { other.ariaSort = 'none'; });
      head.ariaSort = order;
      body.append(...rows);
    };
    head.addEventListener('click', sort);
    head.addEventListener('keydown', event => {
      if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); sort(); }
    });
  });
}
document.querySelectorAll('table').forEach(table => { if (table.tHead) sortable(table); });

// A point names its network and shows its wiring: nodes by their depth, edges downwards.
const networks = JSON.parse(document.getElementById('networks').textContent);
const card = document.getElementById('card');

function draw(stage) {
  const part = (name, attributes) => {
    const element = document.createElementNS('http://www.w3.org/2000/svg', name);
    Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
    return element;
  };
  const levels = [], size = 118;
  stage.depths.forEach((depth, node) => { (levels[depth - 1] = levels[depth - 1] || []).push(node); });
  const places = [];
  levels.forEach((nodes, level) => nodes.forEach((node, i) => {
    // Levels of one node would stand in one line, and hide edges that pass by.
    const shift = nodes.length > 1 ? 0 : (level % 2 ? 0.12 : -0.12);
    places[node] = [size * ((i + 0.5) / nodes.length + shift), 5 + (size - 10) * level / Math.max(levels.length - 1, 1)];
  }));
  const picture = part('svg', {viewBox: `0 0 ${size} ${size}`, width: size, height: size});
  stage.edges.forEach(([source, target]) => picture.append(part('line', {
    x1: places[source][0], y1: places[source][1], x2: places[target][0], y2: places[target][1]})));
  const reads = new Set(stage.edges.map(edge => edge[1])), read = new Set(stage.edges.map(edge => edge[0]));
  places.forEach(([x, y], node) => picture.append(part('circle', {
    cx: x, cy: y, r: 2.6, class: reads.has(node) ? (read.has(node) ? 'node' : 'sink') : 'input'})));
  return picture;
}

function show(event) {
  const point = event.target.closest('[id*="-network-"]');
  const network = point && networks[parseInt(point.id.match(/-network-(\d+)/)[1], 10)];
  card.hidden = !network;
  if (!network) return;
  const title = document.createElement('strong'), said = document.createElement('span');
  title.textContent = network.id;
  said.textContent = network.said;
  const wiring = document.createElement('div');
  wiring.append(...network.stages.map(draw));
  card.replaceChildren(title, said, wiring);
  const {clientX: x, clientY: y} = event, {offsetWidth: width, offsetHeight: height} = card;
  card.style.left = `${Math.max(Math.min(x + 14, innerWidth - width - 8), 4)}px`;
  card.style.top = `${y + height + 20 > innerHeight ? Math.max(y - height - 12, 4) : y + 14}px`;
}
document.addEventListener('pointerover', show);
document.addEventListener('click', show);
